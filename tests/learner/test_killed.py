"""A process is killed at every moment at which it changes a file: what is left is whole, or nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch

from learner.publish import Publisher
from rollout import checkpoints, snapshot
from rollout.model import load_model
from rollout.types import decode_batch, encode
from rollout.weights import Manifest, WeightsError, newest_version, read_tensors
from tests.learner import killed
from tests.learner.batches import make_batch, sampled_group
from tests.learner.ranked import state_of
from tests.models import tiny_qwen3

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("model"))


def die(what: str, model: Path, folder: Path) -> list[Path]:
    """The directories of all the dead, and then that of the survivor."""
    command = [sys.executable, "-m", "tests.learner.killed", what, str(model), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


def files_of(directory: Path) -> Iterator[str]:
    yield from sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


def test_killed_at_any_moment_of_a_checkpoint(model: Path, tmp_path: Path) -> None:
    sampler = load_model(model, "bfloat16")
    batches = [
        make_batch([sampled_group(sampler, seed=step, shift=0.1)], step=step, publish_version=step)
        for step in (1, 2, 3)
    ]
    for batch in batches[:2]:
        (tmp_path / f"batch_{batch.step}").write_bytes(encode(batch))
    places = die("save", model, tmp_path)
    states = torch.load(tmp_path / "states.pt")
    # hf/, the slices of a rank, its state, what the coordinator adds, the mark, the removal of step 1.
    assert len(places) > 20
    found = []
    for place in places:
        newest = checkpoints.latest(place)
        assert newest is not None, place
        step = checkpoints.step_of(newest)
        found.append(step)
        assert snapshot.read(newest).step == step
        # Nor does any other with a mark lack a file.
        for mark in (place / "checkpoints").glob("*/DONE"):
            assert list(files_of(mark.parent)) == list(files_of(killed_last(places)))
        trainer = killed.make_trainer(model, place)
        trainer.restore(newest)
        assert (trainer.step, trainer.version) == (step, step)
        torch.testing.assert_close(state_of(trainer), states[step], rtol=0, atol=0)
        # It goes on over whatever is left, of which nothing stays.
        trainer.train(decode_batch(encode(batches[step])))
        done = killed.complete(place, trainer)
        assert list((place / "checkpoints").iterdir()) == [done]
        assert list(files_of(done)) == list(files_of(killed_last(places)))
        again = killed.make_trainer(model, place)
        again.restore(done)
        torch.testing.assert_close(state_of(again), state_of(trainer), rtol=0, atol=0)
    # Once the mark is there it is step 2, for good.
    assert found == sorted(found) and set(found) == {1, 2}


def killed_last(places: list[Path]) -> Path:
    """The checkpoint of the one that was not killed."""
    newest = checkpoints.latest(places[-1])
    assert newest is not None
    return newest


def test_killed_at_any_moment_of_a_version(model: Path, tmp_path: Path) -> None:
    places = die("publish", model, tmp_path)
    versions = torch.load(tmp_path / "versions.pt")
    assert len(places) > 10
    newest_announced = []
    for place in places:
        lines = (tmp_path / f"announced_{place.name}").read_bytes().splitlines()
        manifests = [msgspec.json.decode(line, type=Manifest) for line in lines]
        newest_announced.append(manifests[-1].version)
        # An engine that was told of it may still be about to load it.
        torch.testing.assert_close(
            read_tensors(manifests[-1]), versions[manifests[-1].version], rtol=0, atol=0
        )
        used = newest_version(place / "version.json")
        assert used in (manifests[-1].version, manifests[-1].version + 1)
        for path in (place / "shm").glob("*.safetensors"):
            tensors = safetensors.torch.load_file(path)
            held = [
                version
                for version, of in versions.items()
                if all(torch.equal(one, of[name]) for name, one in tensors.items())
            ]
            # Whole; and whoever may have read it, its number is used up.
            assert len(held) == 1 and held[0] <= used, (place, path)
        # What goes on finds none of it, under a number that nobody was ever told.
        publisher = Publisher(
            directory=str(place / "shm"),
            fallback=place / "weights",
            run_id=killed.RUN_ID,
            log=place / "version.json",
        )
        assert list((place / "shm").iterdir()) == []
        published = publisher.publish(versions[5], version=used + 1, step=9)
        torch.testing.assert_close(read_tensors(published), versions[5], rtol=0, atol=0)
        for manifest in manifests:
            with pytest.raises(WeightsError, match=f"version {manifest.version}"):
                read_tensors(manifest)
        assert newest_version(place / "version.json") == used + 1
    assert newest_announced == sorted(newest_announced) and set(newest_announced) == {1, 2, 3, 4}


def test_killed_at_any_moment_of_a_policy_written_over_another(model: Path, tmp_path: Path) -> None:
    def files(out: Path) -> dict[str, bytes]:
        found = (path for path in out.iterdir() if not path.name.startswith("."))
        return {path.name: path.read_bytes() for path in found}

    places = die("policy", model, tmp_path)
    old, new = files(tmp_path / "old"), files(places[-1] / "out")
    assert old.keys() == new.keys() and old["tokenizer.json"] != new["tokenizer.json"]
    found = []
    for place in places:
        left = files(place / "out")
        # Without its config it is no model to anybody.
        found.append("none" if "config.json" not in left else "old" if left == old else "new")
        assert found[-1] != "new" or left == new
    assert list(dict.fromkeys(found)) == ["old", "none", "new"]
