"""The audit finds what is wrong with environments of either kind, and nothing where nothing is."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.audit import audit
from synth.audit_report import AuditReport, Check
from synth.court import Court
from tests.synth import env_files

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

RECIPE = VerifyRecipe(step_timeout_s=10.0, solve_timeout_s=10.0, memory_mb=384)


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(RECIPE) as court:
        yield court


def lay(directory: Path, sources: dict[str, str], *, has_instances: bool = True) -> Path:
    """Env files with an instance of each configuration, and beside them the problems of all."""
    directory.mkdir()
    data = b""
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source)
        data += b"".join(env_files.instance(name, config) for config in env_files.CONFIGS)
    if has_instances:
        (directory / "instances.jsonl").write_bytes(data)
    problems = b"".join(env_files.problem(name) for name in sources)
    (directory.parent / "problems.jsonl").write_bytes(problems)
    return directory


async def audited(court: Court, directory: Path, sources: dict[str, str]) -> AuditReport:
    await asyncio.to_thread(lay, directory, sources)
    return await audit(court, directory, solvers_at=str(directory.parent / "problems.jsonl"))


def found(report: AuditReport, env: str = "") -> dict[str, int]:
    """What is not 0, but for duplicates."""
    findings = [one for one in report.findings if one.env == env or not env]
    counted = Counter(str(one.check) for one in findings)
    return {check: count for check, count in counted.items() if check != "duplicates"}


# What each fault is found as, of three tasks.
DUE = {
    "prints_all": {"observe_only_wins": 3},
    "wrong_reference": {"references_wrong": 2, "oracle_fails": 2},
    "tells_answer": {"answer_leaks": 3},
    "done_again": {"answer_leaks": 3},
    "brittle": {"type_brittle": 3},
    "constant": {"constant_answers": 1, "references_wrong": 3},
    "calculators": {"stateless": 1},
    "chance": {"not_deterministic": 3},
    "accepts_all": {"references_wrong": 3, "observe_only_wins": 3},
    "loses": {"oracle_fails": 3},
    "observed_answer": {"observe_only_wins": 3},
    "raises": {"faults": 3},
}


@pytest.mark.parametrize("half", [0, 1])
async def test_each_fault_of_an_env_file_is_found(court: Court, tmp_path: Path, half: int) -> None:
    assert DUE.keys() == env_files.FAULTS.keys()
    due = {fault: DUE[fault] for fault in sorted(DUE)[half::2]}
    sources = {fault: env_files.faulty(fault) for fault in due}
    report = await audited(court, tmp_path / "envs", sources)
    assert {fault: found(report, fault) for fault in sources} == due
    assert (report.envs, report.tasks) == (6, 18)
    for check in ("references_wrong", "answer_leaks", "type_brittle"):
        assert report.audit[check] == sum(one.get(check, 0) for one in due.values())
    # They are copies of each other but for a line.
    assert report.audit["duplicates"] >= 5


async def test_what_looks_like_a_fault_is_none(court: Court, tmp_path: Path) -> None:
    sources = {}
    for name, (before, after) in env_files.SOUND_TOO.items():
        assert before in env_files.SOUND
        sources[name] = env_files.SOUND.replace(before, after)
    report = await audited(court, tmp_path / "envs", sources)
    assert (report.tasks, found(report)) == (6, {})


async def test_a_sound_env_file_has_no_finding(court: Court, tmp_path: Path) -> None:
    report = await audited(court, tmp_path / "envs", {"sound": env_files.SOUND})
    assert report.findings == [] and set(report.audit.values()) == {0}
    assert report.looked_at["references_wrong"] == 3 and report.looked_at["stateless"] == 1


async def test_without_instances_a_class_plays_what_it_starts_with(
    court: Court, tmp_path: Path
) -> None:
    directory = tmp_path / "envs"
    await asyncio.to_thread(
        lay, directory, {"prints_all": env_files.faulty("prints_all")}, has_instances=False
    )
    report = await audit(court, directory)
    assert (report.tasks, found(report)) == (1, {"observe_only_wins": 1})
    # Its options are varied to know whether one answer is always right.
    assert report.looked_at["constant_answers"] == 1
    assert "--solvers" in report.notes[0]


async def test_a_prompt_that_prints_the_input_leaks(court: Court, tmp_path: Path) -> None:
    config = env_files.CONFIGS[0]
    prompts = [
        "Count the cards larger than the limit, e.g. of 14, 10, 27, 8, 19, 33, 5 with limit 10: 4.",
        "Count the cards larger than the limit, e.g. of 14, 10, 27 with limit 10: 2.",
    ]
    rows = [
        env_files.instance(f"c{i}", config, prompt=prompt, source=env_files.SOUND)
        for i, prompt in enumerate(prompts)
    ]
    directory = tmp_path / "envs"
    await asyncio.to_thread(directory.mkdir)
    # Each row brings its own source.
    await asyncio.to_thread((directory / "rows.jsonl").write_bytes, b"".join(rows))
    report = await audit(court, directory)
    (leak,) = [one for one in report.findings if one.check is Check.ANSWER_LEAKS]
    assert leak.env == "c0__CountLargerEnv" and leak.config == config
    (pair,) = [one for one in report.findings if one.check is Check.DUPLICATES]
    assert pair.env == "c0__CountLargerEnv" and "c1__CountLargerEnv" in pair.detail


async def test_the_same_game_under_other_names_is_a_duplicate(court: Court, tmp_path: Path) -> None:
    """Words and names differ; what is asked and answered does not."""
    names = {"CountLarger": "HighTides", "numbers": "tides", "number": "tide", "limit": "wall"}
    other = env_files.SOUND
    for name, new in names.items():
        other = other.replace(name, new)
    count = "return sum(tide > self.wall for tide in self.tides)"
    assert count in other
    other = other.replace(count, "return len([t for t in self.tides if t - self.wall >= 1])")
    another = other.replace("len([t ", "sum([t ").replace("HighTides", "DeepTides")
    directory = tmp_path / "envs"
    sources = {"one": env_files.SOUND, "two": other}
    await asyncio.to_thread(lay, directory, sources, has_instances=False)
    (pair,) = (await audit(court, directory)).findings
    assert (pair.check, pair.env) == (Check.DUPLICATES, "one")
    assert pair.detail.startswith("as two: the same answer to")
    await asyncio.to_thread((directory / "two.py").write_text, another)
    report = await audit(court, directory)
    assert report.audit["duplicates"] == 0
