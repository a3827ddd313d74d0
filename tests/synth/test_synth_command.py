"""`launch.py synth` from rows of published shapes, or a model's replies, to a pool that a run accepts."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import launch
from envpool import sandbox
from synth.export import faults
from synth.llm.recorded import FOLDER
from tests.synth.llm_server import ENVIRON, KEY, PROBLEM, good, is_about_solver, serve
from tests.synth.quick import QUICK

LAUNCH = Path(__file__).parents[2] / "launch.py"
SETTINGS = ("verify.configs=2", "verify.drawn=4", *QUICK)

pytestmark = [
    pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking())),
    pytest.mark.timeout(240),
]

LISTS = [
    [9, 4, 21, 7, 30, 5],
    [12, 3, 8, 44, 17, 6, 25],
    [31, 2, 2, 19, 40, 11, 8],
    [5, 60, 14, 33, 7],
]

ODD = """
def odd_total(numbers):
    total = 0
    for number in numbers:
        if number % 2:
            total += number
    return total
"""
KODCODE = {
    "question_id": "Own_17_I",
    "subset": "Own",
    "question": "Add up those of the `numbers` that are odd.",
    "solution": ODD,
    "test": "from solution import odd_total\n"
    + "".join(
        f"\ndef test_{number}():\n    assert odd_total({one}) == {sum(x for x in one if x % 2)}\n"
        for number, one in enumerate(LISTS)
    ),
    "test_info": [{"function_name": "odd_total", "parameter_list": "(numbers)"}],
}

DEAREST = """
def dearest(prices, limit):
    best = 0
    for price in prices:
        if price <= limit and price > best:
            best = price
    return best
"""
# Some solutions of published sets are of another language, or another version of it.
APPS = {
    "problem_id": 8,
    "question": "Of all `prices` up to the `limit`, which is the highest? 0 if there is none.",
    "starter_code": "def dearest(prices, limit):\n\t",
    "solutions": json.dumps([DEAREST, "print 'no'\n"]),
    "input_output": json.dumps(
        {
            "fn_name": "dearest",
            "inputs": [[one, 25] for one in LISTS],
            "outputs": [max([x for x in one if x <= 25], default=0) for one in LISTS],
        }
    ),
}

WEIGHTED = """
def weight(loads):
    total = 0
    for place in range(len(loads)):
        total += (place + 1) * loads[place]
    return total
"""
TACO = {
    "name": "Weigh the train",
    "question": "Each of the `loads` counts as often as its place says, from 1. What is their total?",
    "skill_types": "['Data structures', 'Sorting']",
    "starter_code": "def weight(loads):\n    ",
    "solutions": [WEIGHTED],
    "input_output": {
        "fn_name": "weight",
        "inputs": [[one] for one in LISTS],
        "outputs": [sum(k * x for k, x in enumerate(one, start=1)) for one in LISTS],
    },
}
# It reads standard input, which takes a model.
PROGRAM = {
    "problem_id": 9,
    "question": "Print the sum of the numbers of the one line that is read.",
    "solutions": json.dumps(["print(sum(map(int, input().split())))\n"]),
    "input_output": json.dumps({"inputs": ["1 2\n", "3 4 5\n"], "outputs": ["3\n", "12\n"]}),
}


def synth(*words: str, code: int = 0, environ: Mapping[str, str] | None = None) -> str:
    """What the command says."""
    done = subprocess.run(
        [sys.executable, str(LAUNCH), "synth", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environ or {})},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check_accepted(out: Path, run_dir: Path) -> None:
    """A run must accept the pool, and its files must be those of the manifest."""
    assert faults(out) == []
    words = ["local.toml", str(out / "train.toml"), f"run.dir={run_dir}", "--dry-run"]
    assert launch.main(words) == 0


@pytest.mark.parametrize(
    ("shape", "rows", "env", "concept"),
    [
        ("kodcode", [KODCODE], "kodcode_own17_i", ""),
        ("apps", [APPS, PROGRAM], "apps8", ""),
        ("taco", [TACO], "taco_weigh_the_train", "data_structures_and_sorting"),
    ],
)
def test_rows_of_published_sets_become_a_pool(
    shape: str, rows: list[dict[str, Any]], env: str, concept: str, tmp_path: Path
) -> None:
    path, out = write_rows(tmp_path / "rows.jsonl", *rows), tmp_path / "out"
    with path.open("a") as file:
        file.write('{"question": "What?"}\n' * 7)
    said = synth(f"out={out}", f'problems.paths=["{path}"]', f"problems.format={shape}", *SETTINGS)
    # Of problems of somebody's own, and of nothing that ships.
    assert said.count("not a problem: ") == 5 and "and 2 more: report.md has them" in said
    report = json.loads((out / "report.json").read_text())
    assert report["concepts"] == ({concept: 1} if concept else report["concepts"])
    tasks = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert {task["env"] for task in tasks} == {env}
    assert f"1 environments and {len(tasks)} tasks of {len(rows)} problems" in said
    refused = {(one["stage"], one["reason"]): one for one in report["refusals"]}
    assert ("read", "no solution") in refused
    if len(rows) > 1:
        assert "llm.enabled=true" in refused["extract", "standard input"]["detail"]
    check_accepted(out, tmp_path / "run")


async def test_replies_of_a_model_become_a_pool(tmp_path: Path) -> None:
    lines = await asyncio.to_thread((FOLDER / "problems.jsonl").read_text)
    (row,) = [one for one in map(json.loads, lines.splitlines()) if one["id"] == PROBLEM.id]
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    await asyncio.to_thread(write_rows, path, row)
    async with serve(good) as served:
        words = [
            f"out={out}",
            f'problems.paths=["{path}"]',
            "extract.enabled=false",
            "llm.enabled=true",
            f"llm.base_url={served.url}",
            "llm.model=tiny",
            "llm.key_env=LLM_TEST_KEY",
            "llm.solvers=1",
            *SETTINGS,
            # More takes longer to be proven.
            "verify.min_certificate=2",
        ]
        said = await asyncio.to_thread(synth, *words, environ=ENVIRON)
        assert sorted(map(is_about_solver, served.bodies)) == [False, True]
        assert served.headers[0]["Authorization"] == f"Bearer {KEY}"
        # Another time nothing is asked, and nothing made.
        again = await asyncio.to_thread(synth, *words, environ=ENVIRON)
        assert len(served.bodies) == 2 and "1 of 1 are finished already" in again
    assert re.search("1 environments and [12] tasks of 1 problems", said) and "model tiny: " in said
    report = json.loads(await asyncio.to_thread((out / "report.json").read_text))
    assert report["origins"] == {"llm": 1}
    # Nor each request, whose address may hold a password.
    assert KEY not in said + again and "HTTP" not in said
    assert not await asyncio.to_thread(files_with, out, KEY)
    await asyncio.to_thread(check_accepted, out, tmp_path / "run")


def files_with(folder: Path, text: str) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_a_key_that_is_missing_is_said_first(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", KODCODE)
    said = synth(
        f"out={tmp_path / 'out'}",
        f'problems.paths=["{path}"]',
        "problems.format=kodcode",
        "llm.enabled=true",
        "llm.model=tiny",
        "llm.base_url=https://api.example.com/v1",
        "llm.key_env=NO_SUCH_KEY",
        code=2,
    )
    assert "NO_SUCH_KEY" in said and "Traceback" not in said


@pytest.mark.parametrize("name", ["file", "file/below", "file/far/below"])
def test_a_directory_that_cannot_be_written_is_said_first(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / name
    said = synth(f"out={out}", *SETTINGS, code=2)
    assert f"out='{out}' cannot be written to" in said and "Traceback" not in said
    assert "factory: " not in said and (tmp_path / "file").read_text() == "mine"
