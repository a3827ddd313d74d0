"""What is looked at before a run goes on: what is refused, with what words, and what is left alone."""

import asyncio
from pathlib import Path

import msgspec
import pytest

import launch
from configs.load import ConfigError, find, load
from envpool.source import PoolSource
from rollout import resume, rundir
from rollout.files import line_files
from rollout.processes import describe, is_alive, write_pids
from tests.recipes import BASICS
from tests.resuming import SETTINGS, go_on, killed_at, play, sources


@pytest.mark.parametrize("is_missing", [False, True])
async def test_a_damaged_history_is_refused(tmp_path: Path, is_missing: bool) -> None:
    await killed_at(tmp_path, 6)
    path = tmp_path / "events.jsonl"
    await asyncio.to_thread(path.unlink if is_missing else lambda: path.write_bytes(b""))
    with pytest.raises(ConfigError, match=r"events\.jsonl has 0 bytes and had"):
        await go_on(tmp_path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.path=elsewhere", "model cannot change"),
        ("pools.basics.weight=2", "pools cannot change"),
        ("weights.every=2", "weights.every cannot change"),
        ("learner.lora.rank=4", "learner.lora cannot change"),
        ("rollout.temperature=0.5", "rollout.temperature cannot change"),
        ("learner.steps=2", "add learner.steps=6"),
        ("learner.stepps=3", "stepps"),
    ],
)
async def test_overrides_that_cannot_be_are_refused_with_the_reason(
    tmp_path: Path, override: str, words: str
) -> None:
    await killed_at(tmp_path, 5)
    with pytest.raises(ConfigError, match=words):
        await go_on(tmp_path, override)


async def test_the_runs_own_recipe_names_the_same_model(tmp_path: Path) -> None:
    config = await killed_at(tmp_path, 5)
    path = await asyncio.to_thread(lambda: find(config.model.path).absolute())
    model = msgspec.structs.replace(config.model, path=str(path))
    written = msgspec.structs.replace(config, model=model)
    await asyncio.to_thread(rundir.write_config, tmp_path, written)
    config, _ = await go_on(tmp_path, BASICS, "rollout.max_lag=3")
    assert config.model == model and config.rollout.max_lag == 3


async def test_overrides_apply_on_top_and_the_old_config_is_kept(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    config, _ = await go_on(tmp_path, "learner.lr=1e-5", "learner.steps=20")
    assert (config.learner.lr, config.learner.steps) == (1e-5, 20)
    assert config.rollout.group_size == 4
    names = await asyncio.to_thread(lambda: sorted(p.name for p in tmp_path.glob("config*.json")))
    assert names == ["config.000.json", "config.json"]


async def test_a_dry_run_says_what_the_config_would_be_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await killed_at(tmp_path, 5)
    before = await asyncio.to_thread((tmp_path / "config.json").read_bytes)
    sizes = await asyncio.to_thread(line_files, tmp_path)
    arguments = ["--resume", str(tmp_path), "learner.lr=1e-5", "--dry-run"]
    assert await asyncio.to_thread(launch.main, arguments) == 0
    path = Path(capsys.readouterr().out.strip().removeprefix("resolved configuration: "))
    assert msgspec.json.decode(await asyncio.to_thread(path.read_bytes))["learner"]["lr"] == 1e-5
    assert await asyncio.to_thread((tmp_path / "config.json").read_bytes) == before
    assert await asyncio.to_thread(line_files, tmp_path) == sizes


async def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    before = await asyncio.to_thread((tmp_path / "config.json").read_bytes)
    await asyncio.to_thread((tmp_path / "config.tmp").mkdir)  # in the way, as a full disk would be
    with pytest.raises(OSError, match=r"config\.tmp"):
        await go_on(tmp_path)
    assert await asyncio.to_thread((tmp_path / "config.json").read_bytes) == before


async def test_a_run_that_another_process_has_just_begun_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await killed_at(tmp_path, 5)
    with rundir.claimed(tmp_path):
        assert await asyncio.to_thread(launch.main, ["--resume", str(tmp_path)]) == 2
    assert "still running" in capsys.readouterr().err


def test_a_run_goes_on_in_its_own_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--resume", "runs/a", "run.dir=runs/b"]) == 2
    assert "run.dir=runs/b" in capsys.readouterr().err


async def test_a_run_that_is_still_running_is_left_alone(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    await asyncio.to_thread(lambda: write_pids(tmp_path, [describe("launch")]))
    with pytest.raises(ConfigError, match="still running"):
        await go_on(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [("config.json", b""), ("pids.json", b""), ("version.json", b""), ("version.json", b"{}")],
)
async def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    await killed_at(tmp_path, 5)
    await asyncio.to_thread((tmp_path / name).write_bytes, data)
    with pytest.raises(ConfigError, match=rf"{name} is damaged"):
        await go_on(tmp_path)


async def test_survivors_are_ended(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    survivor = await asyncio.create_subprocess_exec("sleep", "600")
    recorded = await asyncio.to_thread(describe, "actor-0", survivor.pid)
    await asyncio.to_thread(write_pids, tmp_path, [recorded])
    await go_on(tmp_path)
    assert not await asyncio.to_thread(is_alive, recorded)
    await survivor.wait()


@pytest.mark.parametrize("name", ["", "no/such/run"])
async def test_a_directory_that_is_no_run_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        await go_on(tmp_path / name)


async def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    await killed_at(tmp_path, 2)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        await go_on(tmp_path)


async def test_a_run_that_came_to_its_end_is_over_until_it_is_trained_on(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=4", f"run.dir={tmp_path}"])
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    await asyncio.to_thread(rundir.write_json, tmp_path / "summary.json", {"steps": 4})
    for settings in ([], ["learner.steps=2"]):
        with pytest.raises(ConfigError, match=r"is at step 4, .* add learner\.steps=8"):
            await go_on(tmp_path, *settings)
    # What it came to is no longer so: nobody may read it as the end of what begins now.
    await go_on(tmp_path, "learner.steps=8")
    paths = await asyncio.to_thread(lambda: [*tmp_path.rglob("summary.json")])
    assert paths == [tmp_path / "abandoned" / "000" / "summary.json"]


async def test_a_finished_run_whose_last_step_published_out_of_turn_is_refused(
    tmp_path: Path,
) -> None:
    settings = [*SETTINGS, "learner.steps=5", "weights.every=2", f"run.dir={tmp_path}"]
    config = await asyncio.to_thread(load, settings)
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    with pytest.raises(ConfigError, match=r"weights\.every=2 does not divide 5"):
        await go_on(tmp_path, "learner.steps=8")


async def test_changed_code_of_a_pool_is_refused(tmp_path: Path) -> None:
    config = await killed_at(tmp_path, 5)
    _, resumed = await asyncio.to_thread(resume.check, tmp_path, [])
    (source,) = (await asyncio.to_thread(sources, config)).values()
    other = PoolSource(
        name=source.name,
        version="0" * 16,
        envs=source.envs,
        train=source.train,
        trusted=True,
    )
    for now in ({source.name: other}, {}):
        with pytest.raises(ConfigError, match="restore its code"):
            resume.check_pools(resumed, now)
