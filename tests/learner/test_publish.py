import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from learner.publish import Publisher, named_weights
from rollout.model import load_model
from rollout.weights import (
    Manifest,
    WeightsError,
    checksum,
    pin,
    read_tensors,
    sweep,
    unpin,
)
from tests.models import tiny_qwen3

Usage = namedtuple("Usage", "total used free")


def tensors(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), value), "b": torch.full((4,), -value)}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shm"
    directory.mkdir()
    return directory


def publisher(shared: Path, *, run_id: str = "run") -> Publisher:
    return Publisher(
        directory=str(shared),
        fallback=shared.parent / "fallback",
        run_id=run_id,
        log=shared.parent / "version.json",
    )


def test_a_reader_gets_what_was_published(shared: Path) -> None:
    manifest = publisher(shared).publish(tensors(1.5), version=4, step=9)
    assert (manifest.version, manifest.step) == (4, 9)
    assert Path(manifest.path).parent == shared
    assert Path(manifest.path).stat().st_size == manifest.num_bytes
    torch.testing.assert_close(read_tensors(manifest), tensors(1.5), rtol=0, atol=0)


def test_what_is_not_contiguous_or_needs_a_gradient_is_published(shared: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3).t().requires_grad_()
    manifest = publisher(shared).publish({"a": weight}, version=1, step=1)
    assert read_tensors(manifest)["a"].tolist() == weight.tolist()


def of_every_kind() -> dict[str, Tensor]:
    """Number types of every width, in an order in which they would not be aligned; odd shapes."""
    numbers = torch.arange(15).reshape(3, 5)
    return {
        "a": numbers.to(torch.int8),
        "b": numbers.to(torch.bfloat16),
        "c": numbers.double(),
        "d": numbers > 7,
        "e": numbers.to(torch.float8_e4m3fn),
        "f": torch.tensor(3.5),
        "g": torch.empty(0, 4),
        "h": numbers.half(),
        "i": numbers.long(),
    }


def bits(tensors: dict[str, Tensor]) -> dict[str, object]:
    return {
        name: (one.dtype, one.shape, one.reshape(-1).view(torch.uint8).tolist())
        for name, one in tensors.items()
    }


def test_safetensors_own_library_reads_what_is_published(shared: Path) -> None:
    manifest = publisher(shared).publish(of_every_kind(), version=1, step=1)
    assert bits(safetensors.torch.load_file(manifest.path)) == bits(of_every_kind())


def test_a_file_of_safetensors_own_library_is_read(tmp_path: Path) -> None:
    data = safetensors.torch.save(of_every_kind(), metadata={"format": "pt"})
    (tmp_path / "a").write_bytes(data)
    manifest = Manifest(
        version=1, step=1, path=str(tmp_path / "a"), num_bytes=len(data), checksum=checksum(data)
    )
    assert bits(read_tensors(manifest)) == bits(of_every_kind())


def test_numbers_that_the_format_lacks_are_refused(shared: Path) -> None:
    with pytest.raises(WeightsError, match="b is complex64"):
        publisher(shared).publish({"b": torch.zeros(2, dtype=torch.complex64)}, version=1, step=1)


def test_what_was_read_stays_when_its_buffer_is_written_anew(shared: Path) -> None:
    sender = publisher(shared)
    read = read_tensors(sender.publish(tensors(1.0), version=1, step=1))
    for version in (2, 3):
        sender.publish(tensors(version), version=version, step=version)
    torch.testing.assert_close(read, tensors(1.0))


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_of_a_model_is_handed_over_once(tmp_path: Path, tied: bool) -> None:
    model = load_model(tiny_qwen3(tmp_path / "a", seed=1, tied=tied), "float32")
    other = load_model(tiny_qwen3(tmp_path / "b", seed=2, tied=tied), "float32")
    shared = tmp_path / "shm"
    shared.mkdir()
    manifest = publisher(shared).publish(named_weights(model), version=1, step=1)
    loaded = other.load_state_dict(read_tensors(manifest), strict=False)
    assert loaded.unexpected_keys == []
    assert loaded.missing_keys == (["lm_head.weight"] if tied else [])
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_a_damaged_file_is_refused(shared: Path) -> None:
    manifest = publisher(shared).publish(tensors(1.0), version=1, step=1)
    data = bytearray(Path(manifest.path).read_bytes())
    data[-1] ^= 1
    Path(manifest.path).write_bytes(data)
    with pytest.raises(WeightsError, match="version 1"):
        read_tensors(manifest)


def test_the_last_two_versions_can_be_read(shared: Path) -> None:
    sender = publisher(shared)
    # Versions may skip, after a restart: buffers alternate all the same.
    manifests = [sender.publish(tensors(v), version=v, step=v) for v in (1, 3, 5)]
    with pytest.raises(WeightsError, match="version 1"):
        read_tensors(manifests[0])
    for version, manifest in zip((3, 5), manifests[1:], strict=True):
        torch.testing.assert_close(read_tensors(manifest), tensors(version))


def test_a_reader_of_an_overwritten_version_still_sees_a_whole_file(shared: Path) -> None:
    sender = publisher(shared)
    manifest = sender.publish(tensors(1.0), version=1, step=1)
    expected = Path(manifest.path).read_bytes()
    with Path(manifest.path).open("rb") as file:
        head = file.read(10)
        for version in (2, 3):
            latest = sender.publish(tensors(version), version=version, step=version)
        assert latest.path == manifest.path
        assert head + file.read() == expected


@pytest.mark.parametrize("version", [4, 5])
def test_a_version_is_never_used_again(shared: Path, version: int) -> None:
    sender = publisher(shared)
    manifest = sender.publish(tensors(1.0), version=5, step=5)
    with pytest.raises(WeightsError, match=f"version {version} follows version 5"):
        sender.publish(tensors(2.0), version=version, step=6)
    torch.testing.assert_close(read_tensors(manifest), tensors(1.0))


def test_close_leaves_no_file(shared: Path) -> None:
    sender = publisher(shared)
    for version in (1, 2, 3):
        sender.publish(tensors(1.0), version=version, step=version)
    sender.close()
    assert list(shared.iterdir()) == []


def test_start_sweeps_what_a_killed_process_of_this_run_left(shared: Path) -> None:
    old = publisher(shared).publish(tensors(1.0), version=1, step=1)
    Path(old.path + ".partial").write_bytes(b"half")
    # A run whose id begins with this run's is another run.
    neighbour = publisher(shared, run_id="run-0").publish(tensors(2.0), version=1, step=1)
    stranger = shared / "unrelated.safetensors"
    stranger.touch()
    publisher(shared)
    assert set(shared.iterdir()) == {Path(neighbour.path), stranger}


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_run_directory_is_used_when_the_shared_one_is_not_there(tmp_path: Path, kind: str) -> None:
    shared = tmp_path / "shm"
    if kind == "file":
        shared = Path("/dev/null")
    sender = Publisher(
        directory=str(shared),
        fallback=tmp_path / "run" / "weights",
        run_id="r",
        log=tmp_path / "version.json",
    )
    manifest = sender.publish(tensors(1.0), version=1, step=1)
    assert Path(manifest.path).parent == tmp_path / "run" / "weights"
    torch.testing.assert_close(read_tensors(manifest), tensors(1.0))
    sender.close()
    assert not Path(manifest.path).exists()


@pytest.mark.parametrize(("copies", "name"), [(3.0, "shm"), (2.9, "fallback")])
def test_run_directory_is_used_when_three_copies_do_not_fit(
    shared: Path, monkeypatch: pytest.MonkeyPatch, copies: float, name: str
) -> None:
    num_bytes = publisher(shared).publish(tensors(0.0), version=1, step=1).num_bytes
    usage = Usage(total=0, used=0, free=int(copies * num_bytes))
    # The free space of a file system cannot be arranged without being root.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    manifest = publisher(shared).publish(tensors(1.0), version=1, step=1)
    assert Path(manifest.path).parent.name == name


def test_run_directory_is_used_from_when_a_write_fails(shared: Path) -> None:
    sender = publisher(shared)
    first = sender.publish(tensors(1.0), version=1, step=1)
    # A directory under the name of the second buffer's temporary file.
    (shared / "millrace-run-1.safetensors.partial").mkdir()
    second = sender.publish(tensors(2.0), version=2, step=2)
    third = sender.publish(tensors(3.0), version=3, step=3)
    assert Path(first.path).parent == shared
    for version, manifest in ((2.0, second), (3.0, third)):
        assert Path(manifest.path).parent == shared.parent / "fallback"
        torch.testing.assert_close(read_tensors(manifest), tensors(version))


def test_a_link_put_in_the_way_is_not_followed(shared: Path, tmp_path: Path) -> None:
    sender = publisher(shared)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name in ("millrace-run-0.safetensors", "millrace-run-0.safetensors.partial"):
        (shared / name).symlink_to(victim)
    manifest = sender.publish(tensors(1.0), version=1, step=1)
    assert victim.read_bytes() == b"precious"
    assert Path(manifest.path).parent == shared and not Path(manifest.path).is_symlink()


@pytest.mark.parametrize("run_id", ["", "../etc", "a b", "a\n"])
def test_a_run_id_that_is_no_file_name_is_refused(shared: Path, run_id: str) -> None:
    with pytest.raises(ValueError, match="run id"):
        publisher(shared, run_id=run_id)


def test_a_pinned_version_outlives_its_buffer(shared: Path) -> None:
    ours = publisher(shared)
    first = ours.publish(tensors(1.5), version=1, step=1)
    pinned = pin(first, "run", place=0)
    for version in (2, 3):
        ours.publish({}, version=version, step=version)
    torch.testing.assert_close(read_tensors(pinned), tensors(1.5), rtol=0, atol=0)
    unpin(pinned)
    for place in range(2):
        pin(first, "run", place=place)
    sweep([shared], "run")
    assert not list(shared.glob("*.safetensors"))
