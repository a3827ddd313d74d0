"""`launch.py pool` and `control` against a run that goes on in front of fakes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import launch
from configs.schema import ControlSection
from rollout.control import serve
from tests.coordinating import Bench, make_bench, playing, until

LONG = ("learner.steps=100000", "checkpoint.every=0", "rollout.group_size=2")
ONE = ("mine", "tests.other_pools:one", "--trusted")


@asynccontextmanager
async def served(bench: Bench, section: ControlSection | None = None) -> AsyncIterator[str]:
    """The URL of a run that goes on."""
    section = section or ControlSection()
    async with (
        serve(bench.run_dir, section=section, desk=bench.coordinator.desk) as url,
        playing(bench),
    ):
        await until(bench, step=1)
        yield url


async def run(*words: str) -> int:
    return await asyncio.to_thread(launch.main, list(words))


async def test_pools_are_listed_added_replaced_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = await make_bench(tmp_path, *LONG)
    at = ("--run", str(tmp_path))
    async with served(bench):
        assert await run("pool", "add", *ONE, "--weight", "2", *at) == 0
        said = capsys.readouterr().out
        assert said.startswith("pool mine: version ") and said.endswith("is live, weight 2\n")
        two = ("mine", "tests.other_pools:two", "trusted=true", "--train", "find_max")
        assert await run("pool", "replace", *two, "is_replayable=false", *at) == 0
        live = bench.coordinator._pools.live("mine")
        assert live.source.train == ("find_max",) and not live.section.is_replayable
        capsys.readouterr()
        assert await run("pool", "list", *at) == 0
        head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert head[:3] == ["pool", "version", "state"]
        assert [row[0] for row in rows] == ["basics", "mine", "mine"]
        assert rows[2][2] == "live" and rows[2][-1] == "find_max"
        assert await run("pool", "remove", "mine", *at) == 0
        capsys.readouterr()
        assert await run("pool", "list", "--json", *at) == 0
        found = json.loads(capsys.readouterr().out)
        assert {info["name"] for info in found if info["state"] == "live"} == {"basics"}


async def test_a_refusal_is_in_the_runs_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as url:
        assert await run("pool", "remove", "basics", "--run", url) == 1
        assert "refused: 'basics' is the last pool" in capsys.readouterr().err
        assert await run("pool", "add", *ONE, "wieght=2", "--run", url) == 1
        assert "did you mean weight?" in capsys.readouterr().err


async def test_the_token_is_found_in_the_directory_or_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench, ControlSection(token="sesame")) as url:
        assert await run("control", "status", "--run", str(tmp_path)) == 0
        assert await run("control", "status", "--run", url) == 1
        assert "a token is needed" in capsys.readouterr().err
        assert await run("control", "status", "--run", url, "--token", "sesame") == 0


async def test_a_run_is_paused_saved_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = await make_bench(tmp_path, *LONG)
    at = ("--run", str(tmp_path))
    async with served(bench):
        assert await run("control", "pause", *at) == 0
        assert "training, paused: step " in capsys.readouterr().out
        assert await run("control", "checkpoint", *at) == 0
        assert str(tmp_path / "checkpoints" / "step_") in capsys.readouterr().out
        assert await run("control", "resume", *at) == 0
        assert "paused" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pool"], "use pool list | add"),
        (["pool", "lst"], "pool 'lst' is not known"),
        (["pool", "list"], "which run? --run DIR"),
        (["pool", "list", "--run"], "--run needs a word"),
        (["pool", "list", "--rum", "x"], "no option --rum"),
        (["pool", "list", "--run", "no/such/run"], "no such directory"),
        (["pool", "list", "--run", "."], "nothing runs in it"),
        (["pool", "add", "mine", "--run", "."], "expected NAME SOURCE, got mine"),
        (["pool", "list", "--run", "http://127.0.0.1:9"], "no run answers at http://127.0.0.1:9"),
        (["control", "stop", "--run", "."], "use control status | pause"),
    ],
)
def test_mistakes_are_said_with_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(words) == 2
    assert said in capsys.readouterr().err


async def test_a_run_that_was_killed_is_not_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = b'{"format":1,"url":"http://127.0.0.1:9","pid":1}'
    await asyncio.to_thread((tmp_path / "control.json").write_bytes, left)
    assert await run("pool", "list", "--run", str(tmp_path)) == 2
    assert "it ended" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["pool", "control"])
def test_help_names_every_action(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert launch.main([command]) == 2
    actions = capsys.readouterr().err.strip().rsplit(f"use {command} ", 1)[1].split(" | ")
    assert all(f"  {command} {action} " in said for action in actions)
