"""Environments of the factory: mistakes seeded into originals are found by a second solution."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.audit import counted_in, findings_of
from synth.audit_report import Check
from synth.court import Court
from synth.records import Made
from synth.report import Audit
from tests.synth import seeded
from tests.synth.made import make

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

CLEAN = Audit(references_wrong=0, observe_only_wins=0, answer_leaks=0, duplicates=0)


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(VerifyRecipe(step_timeout_s=20.0, solve_timeout_s=20.0)) as court:
        yield court


@pytest.fixture(scope="module")
def sound() -> list[Made]:
    return [seeded.made_of(problem) for problem in seeded.problems()]


@pytest.fixture(scope="module")
def mistaken() -> list[Made]:
    return [seeded.made_of(seeded.seeded(problem)) for problem in seeded.problems()]


async def test_all_ten_seeded_mistakes_are_found(court: Court, mistaken: list[Made]) -> None:
    assert len(mistaken) == len(seeded.BUGS) == 10
    findings = await findings_of(court, mistaken)
    assert {one.env for one in findings} == seeded.BUGS.keys()
    assert {one.check for one in findings} == {Check.REFERENCES_WRONG}
    assert all("solution 1" in one.detail for one in findings)


async def test_without_mistakes_nothing_is_found(court: Court, sound: list[Made]) -> None:
    assert await findings_of(court, sound) == []
    assert counted_in(await findings_of(court, sound)) == CLEAN


async def test_nobody_finds_them_without_a_second_solution(
    court: Court, mistaken: list[Made]
) -> None:
    alone = [
        msgspec.structs.replace(
            one, draft=msgspec.structs.replace(one.draft, solutions=one.draft.solutions[:1])
        )
        for one in mistaken
    ]
    assert counted_in(await findings_of(court, alone)) == CLEAN


def with_draft(one: Made, **changes: object) -> Made:
    return msgspec.structs.replace(one, draft=msgspec.structs.replace(one.draft, **changes))


async def test_the_solutions_and_the_checker_have_the_last_word(court: Court) -> None:
    raises = "def solve(numbers):\n    return 1 // 0\n"
    refuses = "def check(answer, numbers):\n    return answer != sum(numbers)\n"
    likes = "def check(answer, numbers):\n    return answer in (sum(numbers), -sum(numbers))\n"
    minus = "def solve(numbers):\n    return -sum(numbers)\n"
    made = [
        with_draft(make("fails", "sum(numbers)"), solutions=(raises,)),
        with_draft(make("refused", "sum(numbers) + 0"), checker=refuses),
        # The checker takes both, the environment only one.
        with_draft(make("both", "0 + sum(numbers)"), checker=likes, solutions=(minus,)),
    ]
    findings = await findings_of(court, made)
    wrong = [one for one in findings if one.check is Check.REFERENCES_WRONG]
    assert {one.env for one in wrong} == {"fails", "refused", "both"} and len(wrong) == 12
    told = {one.env: one.detail for one in wrong}
    assert "has no answer: raised: ZeroDivisionError" in told["fails"]
    assert "the checker of refused says" in told["refused"]
    assert "the solution of both says -" in told["both"]


async def test_traces_are_played_again(court: Court) -> None:
    one = make("total", "sum(numbers)")
    first, second, third, fourth = one.tasks
    lost = msgspec.structs.replace(first.trace[-1], arguments={"answer": first.answer + 1})
    told = msgspec.structs.replace(second.trace[1], observation="100")
    tasks = (
        msgspec.structs.replace(first, trace=(*first.trace[:-1], lost)),
        msgspec.structs.replace(second, trace=(second.trace[0], told, *second.trace[2:])),
        third,
        fourth,
    )
    findings = await findings_of(court, [msgspec.structs.replace(one, tasks=tasks)])
    failing = [one for one in findings if one.check is Check.ORACLE_FAILS]
    assert [(one.config, one.detail) for one in failing] == [
        (first.config, "the trace does not win"),
        (second.config, "the trace is answered otherwise in call 2"),
    ]
