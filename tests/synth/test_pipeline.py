"""The factory as its user has it: the command, on problems of the test's own, in real sandboxes."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from envpool import sandbox
from synth.export import faults, read_manifest
from tests.synth.quick import QUICK

LAUNCH = Path(__file__).parents[2] / "launch.py"
SETTINGS = ("recorded=false", "verify.configs=3", "verify.drawn=6", *QUICK)

pytestmark = [
    pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking())),
    pytest.mark.timeout(240),
]

SUM = '''
    """Add up the {what}."""

    from random import Random
    from typing import Any


    def solve(numbers: list[int]) -> int:
        total = 0
        for number in numbers:
            if number % {divisor}:
                total += number
        return total


    def solve_again(numbers: list[int]) -> int:
        return sum(number for number in numbers if number % {divisor})


    def generate(rng: Random, level: int) -> dict[str, Any]:
        return {{"numbers": [rng.randint(1, 90) for _ in range(rng.randint(5, 8))]}}


    TESTS = [({{"numbers": [1, {divisor}]}}, 1)]
'''
SMALLEST = '''
    """Find the smallest even entry, or -1."""

    from random import Random
    from typing import Any


    def solve(entries: list[int]) -> int:
        best = -1
        for i in range(len(entries)):
            if entries[i] % 2 == 0 and (best < 0 or entries[i] < best):
                best = entries[i]
        return best


    def generate(rng: Random, level: int) -> dict[str, Any]:
        return {"entries": [rng.randint(1, 90) for _ in range(rng.randint(6, 9))]}


    TESTS = [({"entries": [3, 8, 4]}, 4), ({"entries": [3]}, -1)]
'''
ENDLESS = '''
    """Never known."""


    def solve(numbers: list[int]) -> int:
        while numbers:
            pass
        return 0


    TESTS = [({"numbers": [1]}, 0), ({"numbers": [2]}, 0)]
'''


def write(folder: Path, concept: str, name: str, text: str) -> None:
    path = folder / concept / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    folder = tmp_path / "problems"
    write(folder, "adding", "odd_total", SUM.format(what="odd numbers", divisor=2))
    write(folder, "picking", "smallest_even", SMALLEST)
    return folder


def synth(*words: str, code: int = 0) -> str:
    """What the command says."""
    done = subprocess.run(
        [sys.executable, str(LAUNCH), "synth", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def given(problems: Path, out: Path, *words: str) -> list[str]:
    return [f"out={out}", f'problems.paths=["{problems}"]', *SETTINGS, *words]


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def records(out: Path) -> dict[str, float]:
    """Finished work, and when it was written."""
    return {path.name: path.stat().st_mtime for path in (out / "work" / "made").glob("*.json")}


def test_problems_become_a_pool_that_is_whole(problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = synth(*given(problems, out))
    assert "2 environments and 6 tasks of 2 problems" in said
    # As it was called, so that it can be pasted.
    assert f"{LAUNCH} MY_RECIPE.toml {out / 'train.toml'}" in said
    assert faults(out) == []
    report = report_of(out)
    assert (report["envs"], report["tasks"]) == (2, 6)
    assert report["audit"] == {
        "references_wrong": 0,
        "observe_only_wins": 0,
        "answer_leaks": 0,
        "duplicates": 0,
    }
    rows = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        assert row["calls"][-1][0] == "done" and row["certificate"]["calls"] >= 3
        numbers = row["config"].get("numbers", row["config"].get("entries"))
        assert len(row["calls"]) >= len(numbers)


def test_what_is_finished_is_kept_and_done_once(problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH), "synth", *given(problems, out, "workers=1")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not records(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = records(out)
    assert len(before) == 1 and read_manifest(out) is None
    synth(*given(problems, out, "workers=1"))
    after = records(out)
    assert len(after) == 2 and after.items() >= before.items()
    first = read_manifest(out)
    write(problems, "adding", "other_total", SUM.format(what="numbers no 3 divides", divisor=3))
    synth(*given(problems, out))
    assert records(out).items() >= after.items() and len(records(out)) == 3
    second = read_manifest(out)
    assert first is not None and second is not None and first.content != second.content


def test_the_same_problems_give_the_same_pool(problems: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        synth(*given(problems, tmp_path / name))
        manifest = read_manifest(tmp_path / name)
        assert manifest is not None
        contents.append(
            {
                path: file.sha256
                for path, file in manifest.files.items()
                if path.startswith("pool/") and path.endswith(".py")
            }
        )
    assert contents[0] == contents[1] and contents[0]


def test_what_is_wrong_with_a_problem_is_said_and_the_others_go_on(
    problems: Path, tmp_path: Path
) -> None:
    write(problems, "bad", "endless", ENDLESS)
    write(problems, "bad", "unparsable", '"""What?"""\ndef solve(a: int) -> int return a\n')
    write(
        problems,
        "bad",
        "evil",
        '"""Read."""\nimport os\n\n\ndef solve(a: int) -> int:\n    return os.getpid()\n',
    )
    out = tmp_path / "out"
    synth(*given(problems, out, "verify.solve_timeout_s=0.5"))
    report = report_of(out)
    assert report["envs"] == 2
    reasons = {one["problem"]: (one["stage"], one["reason"]) for one in report["refusals"]}
    assert reasons["endless"] == ("solve", "timeout")
    assert reasons["evil"][0] in ("solve", "read")
    assert reasons["unparsable"][0] == "read"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (['problems.paths=["nowhere"]'], "nowhere"),
        (["verify.confgs=3"], "confgs"),
        (["llm.enabled=true"], "llm.model"),
    ],
)
def test_a_mistake_is_said_before_anything_is_made(
    words: list[str], told: str, tmp_path: Path
) -> None:
    said = synth(f"out={tmp_path / 'out'}", *words, code=2)
    assert told in said and "Traceback" not in said


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    said = synth(f"out={tmp_path}", code=2)
    assert "did not write" in said and [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


def test_a_result_is_not_replaced_by_one_of_other_settings_or_by_nothing(
    problems: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    synth(*given(problems, out))
    before = read_manifest(out)
    said = synth(*given(problems, out, "filters.min_calls=4"), code=2)
    assert "finished result of another recipe (filters)" in said
    for path in problems.glob("*/*.py"):
        path.write_text(path.read_text().replace("answer", "").replace("TESTS = [", "TESTS = [1, "))
    said = synth(*given(problems, out), code=1)
    assert "none of 0 problems gave an environment: read: " in said and "not a problem: " in said
    assert read_manifest(out) == before and faults(out) == []


def test_an_unfinished_result_of_other_settings_is_made_anew(
    problems: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    synth(*given(problems, out))
    (out / "manifest.json").unlink()
    before = records(out)
    said = synth(*given(problems, out, "extract.hint=Look twice."))
    assert "it is not taken over" in said and "2 environments and 6 tasks" in said
    rows = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert all(row["prompt"].endswith("Look twice.") for row in rows)
    assert faults(out) == [] and len(records(out)) == 2 * len(before)


def test_what_the_audit_finds_wrong_is_not_exported(problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    synth(*given(problems, out))
    # As if the verifier had let through an environment whose solutions say otherwise.
    for path in (out / "work" / "made").glob("*.json"):
        record = json.loads(path.read_text())
        for one in record["made"]:
            if one["draft"]["env"] == "odd_total":
                wrong = [text.replace("% 2", "% 5") for text in one["draft"]["solutions"]]
                one["draft"]["solutions"] = wrong
        path.write_text(json.dumps(record))
    said = synth(*given(problems, out))
    assert "1 environments and 3 tasks" in said
    refused = [one for one in report_of(out)["refusals"] if one["stage"] == "audit"]
    assert {one["env"] for one in refused} == {"odd_total"}
    assert {one["reason"] for one in refused} == {"references_wrong"}
    assert faults(out) == []
