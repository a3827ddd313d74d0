"""Code that nobody trusts, run in the sandbox: what it gives, and every way in which it fails."""

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from configs.load import ConfigError
from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.court import Answer, Court, Failure, JobFault

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

RECIPE = VerifyRecipe(step_timeout_s=5.0, solve_timeout_s=5.0, memory_mb=256)


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(RECIPE) as court:
        yield court


async def answered(court: Court, body: str, *args: dict[str, Any]) -> list[Answer | Failure]:
    """What one solution of a line or more gives."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return (await court.solve([f"def solve(n):\n{lines}\n"], "solve", args or [{"n": 3}]))[0]


async def test_solutions_answer_in_order(court: Court) -> None:
    sources = [
        "def solve(n): return n + 1",
        "import collections\ndef solve(n):\n    return {'a': (n, {3, 1})}",
    ]
    found = await court.solve(sources, "solve", [{"n": 1}, {"n": 2**80}])
    assert found == [
        [Answer(value=2), Answer(value=2**80 + 1)],
        [Answer(value={"a": [1, [1, 3]]}), Answer(value={"a": [2**80, [1, 3]]})],
    ]


async def test_no_call_depends_on_those_before(court: Court) -> None:
    source = "import random\nseen = []\ndef solve(n):\n    seen.append(n)\n    return [len(seen), random.random()]"
    ((first, second),) = await court.solve([source], "solve", [{"n": 1}, {"n": 1}])
    assert isinstance(first, Answer) and first == second
    assert first.value[0] == 1


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("return 1 // (n - 3)", "raised", r"ZeroDivisionError.* in line 2"),
        ("return solve(n)", "raised", "RecursionError"),
        ("raise SystemExit(0)", "raised", "SystemExit"),
        ("return float('nan')", "no_json", "finite"),
        ("return {(1, 2): 3}", "no_json", "key"),
        ("return object()", "no_json", "object"),
        ("while True: pass", "timeout", "killed"),
        ("return len([0] * 10**9)", "memory", "MemoryError"),
        ("import os\nos._exit(3)", "crashed", "exit"),
        ("return open('/etc/passwd').read()", "raised", "PermissionError"),
        ("import socket\nsocket.socket()", "raised", "PermissionError"),
        (
            "import subprocess\nsubprocess.run(['true'])",
            "raised",
            "PermissionError|BlockingIO|OSError",
        ),
    ],
)
async def test_every_failure_has_its_reason(body: str, reason: str, words: str) -> None:
    recipe = VerifyRecipe(solve_timeout_s=1.0, memory_mb=256)
    async with Court(recipe) as court:
        (found,) = await answered(court, body)
        assert isinstance(found, Failure)
        assert found.reason == reason
        assert re.search(words, found.detail), found.detail


async def test_the_next_arguments_are_tried_after_a_death(court: Court) -> None:
    body = "import os\nif n == 1: os._exit(1)\nreturn n"
    found = await answered(court, body, {"n": 0}, {"n": 1}, {"n": 2})
    assert [type(one) for one in found] == [Answer, Failure, Answer]


async def test_a_program_reads_and_prints(court: Court) -> None:
    source = "import sys\na = int(input())\nprint(a + int(sys.stdin.readline()))\nsys.stdout.write('.')\nexit()"
    found = await court.solve(
        [source], "solve", [{"stdin": "1\n2\n"}, {"stdin": "1\n"}], kind="stdin"
    )
    assert found[0][0] == Answer(value="3\n.")
    assert isinstance(found[0][1], Failure) and "ValueError" in found[0][1].detail


async def test_a_source_that_cannot_be_run_fails_for_all(court: Court) -> None:
    (found,) = await court.solve(["def solve(n:\n"], "solve", [{"n": 1}])
    assert isinstance(found[0], Failure) and "SyntaxError" in found[0].detail
    (found,) = await court.solve(["def other(n): return n"], "solve", [{"n": 1}])
    assert isinstance(found[0], Failure) and "solve" in found[0].detail


async def test_a_longer_draw_begins_with_the_shorter_one(court: Court) -> None:
    source = "def generate(rng, level):\n    return {'n': rng.randrange(10**9), 'level': level}"
    short = await court.generate(source, 2, 1, seed=7)
    assert (await court.generate(source, 4, 1, seed=7))[:2] == short
    assert (await court.generate(source, 2, 1, seed=8)) != short
    assert short[0]["level"] == 1


async def test_a_generator_that_gives_none_is_a_fault(court: Court) -> None:
    with pytest.raises(JobFault, match="return a dict") as caught:
        await court.generate("def generate(rng, level): return 3", 1, 0, 0)
    assert caught.value.reason == "raised"


async def test_a_job_of_ours_runs_beside_a_solution(court: Court) -> None:
    files = {
        "_solution_0.py": "def solve(n): return n * 2",
        "_twice.py": "import _solution_0\ndef main(n): return [_solution_0.solve(_solution_0.solve(n))]",
    }
    assert await court.run(files, "_twice:main", {"n": 5}) == [20]
    with pytest.raises(JobFault, match="KeyError"):
        await court.run({"_bad.py": "def main(): return {}['x']"}, "_bad:main", {})


async def test_code_that_cannot_be_imported_is_a_fault(court: Court) -> None:
    with pytest.raises(JobFault, match="ZeroDivisionError") as caught:
        await court.run({"draft.py": "1 / 0"}, "_x:main", {})
    assert caught.value.reason == "load"


async def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "lacking", lambda: {sandbox.Layer.LANDLOCK: "none here"})
    with pytest.raises(ConfigError, match="none here"):
        async with Court(RECIPE):
            pass
