"""Environments of the factory: mistakes seeded into originals are found by a second solution."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.audit import audit_made, findings_of
from synth.audit_report import Check
from synth.court import Court
from synth.records import Made
from synth.report import Audit
from tests.synth import seeded

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
    assert await audit_made(court, sound) == CLEAN


async def test_nobody_finds_them_without_a_second_solution(
    court: Court, mistaken: list[Made]
) -> None:
    alone = [
        msgspec.structs.replace(
            one, draft=msgspec.structs.replace(one.draft, solutions=one.draft.solutions[:1])
        )
        for one in mistaken
    ]
    assert await audit_made(court, alone) == CLEAN
