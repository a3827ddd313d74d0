"""`synth.pipeline` stage by stage: what is taken over, what models and the audit leave, and the counts."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.synth import (
    ExtractRecipe,
    FilterRecipe,
    LlmRecipe,
    ProblemsRecipe,
    SplitRecipe,
    SynthRecipe,
    VerifyRecipe,
)
from envpool import sandbox
from synth.audit_report import Check, Finding
from synth.court import Court
from synth.making import Making, count_made
from synth.pipeline import Factory, audited, record_key, with_own_ids
from synth.problem import Problem
from synth.progress import Stages
from synth.records import Draft, Refusal
from synth.report import Counts, Report
from synth.store import Store
from tests.synth.made import draw, make
from tests.synth.scripted_endpoint import Body, observations, serve, tool_calls

needs_sandbox = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

PROBLEM = '''"""Add up `numbers`."""


def solve(numbers: list[int]) -> int:
    return sum(numbers)


TESTS = [({"numbers": [1, 2]}, 3), ({"numbers": [4]}, 4)]
'''


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(VerifyRecipe(memory_mb=256)) as court:
        yield court


class Asking:
    """A synthesizer that refuses all problems."""

    def __init__(self, reason: str) -> None:
        self.asked: list[str] = []
        self._reason = reason

    async def drafts(self, problem: Problem) -> Sequence[Draft | Refusal]:
        self.asked.append(problem.id)
        return [Refusal(problem=problem.id, stage="llm", reason=self._reason)]

    async def repair(self, draft: Draft, message: str) -> Draft | Refusal | None:
        raise AssertionError(message)


def recipe_for(folder: Path, *ids: str, **more: Any) -> SynthRecipe:
    """A recipe whose synthesizer is the test's own, with a problem for each id."""
    (folder / "problems").mkdir(exist_ok=True)
    for name in ids:
        (folder / "problems" / f"{name}.py").write_text(PROBLEM)
    return SynthRecipe(
        problems=ProblemsRecipe(paths=[str(folder / "problems")]),
        extract=ExtractRecipe(enabled=False),
        verify=VerifyRecipe(drawn=2),
        **more,
    )


async def run(
    recipe: SynthRecipe, folder: Path, court: Court, asking: Asking | None = None
) -> Report:
    factory = await asyncio.to_thread(Factory, recipe, folder / "out", court, Stages(None), asking)
    return await factory.run()


def records(folder: Path) -> list[Path]:
    return sorted((folder / "out" / "work" / "made").glob("*.json"))


@needs_sandbox
@pytest.mark.parametrize(("reason", "again"), [("budget", 2), ("format", 1)])
async def test_only_what_the_budget_cut_short_is_asked_again(
    court: Court, tmp_path: Path, reason: str, again: int
) -> None:
    llm = LlmRecipe(enabled=True, model="m")
    recipe = await asyncio.to_thread(recipe_for, tmp_path, "add", llm=llm)
    asking = Asking(reason)
    for _ in range(2):
        report = await run(recipe, tmp_path, court, asking)
        assert report.tasks == 0 and [one.reason for one in report.refusals] == [reason]
    assert asking.asked == ["add"] * again
    assert len(await asyncio.to_thread(records, tmp_path)) == 2 - again


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("verify", {"seed": 1}),
    ("verify", {"min_certificate": 2}),
    ("extract", {"hint": "Look."}),
    ("llm", {"model": "other"}),
    ("llm", {"samples": 2}),
    ("llm", {"solvers": 1}),
    ("llm", {"temperature": 0.1}),
    ("llm", {"max_tokens": 100}),
    ("llm", {"repairs": 1}),
    ("llm", {"enabled": True}),
    ("filters", {"min_calls": 9}),
    ("filters", {"max_calls": 255}),
    ("filters", {"min_tools": 3}),
]


@needs_sandbox
async def test_what_other_settings_accepted_is_not_taken_over(
    court: Court, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="synth.pipeline")
    recipe = await asyncio.to_thread(recipe_for, tmp_path, "add")
    asking = Asking("format")
    await run(recipe, tmp_path, court, asking)
    assert "finished" not in caplog.text
    for number, (section, change) in enumerate(CHANGES, start=2):
        other = msgspec.structs.replace(
            recipe,
            **{section: msgspec.structs.replace(getattr(recipe, section), **change)},
        )
        caplog.clear()
        await run(other, tmp_path, court, asking)
        assert len(asking.asked) == number, change
        assert "it is not taken over" in caplog.text
    # What decides nothing about a problem changes nothing.
    other = msgspec.structs.replace(
        recipe, workers=1, split=SplitRecipe(seed=1), llm=LlmRecipe(retries=1, concurrency=1)
    )
    caplog.clear()
    await run(other, tmp_path, court, asking)
    assert len(asking.asked) == len(CHANGES) + 1
    assert "1 of 1 are finished already" in caplog.text


def test_a_draft_is_judged_by_its_problem_which_its_record_says(tmp_path: Path) -> None:
    draft, store, recipe = make("total", "sum(numbers)").draft, Store(tmp_path), SynthRecipe()
    problem = Problem(id="total", statement="Add.", solutions=draft.solutions)
    cases = [
        (draft, None),
        (draft, problem),
        (draft, msgspec.structs.replace(problem, checker="def check(answer, numbers): return 1")),
        (msgspec.structs.replace(draft, notes=("other",)), problem),
        (problem, None),
    ]
    keys = [record_key(store, recipe, *case) for case in cases]
    assert len(set(keys)) == len(keys)
    # Where it was read from is no part of it.
    moved = msgspec.structs.replace(problem, place="rows.jsonl:3")
    assert record_key(store, recipe, moved) == keys[-1]


def plays(body: Body) -> Body:
    """Reads all numbers and answers what the statement asks for, if the model named in it can."""
    seen, text = observations(body), body["messages"][0]["content"]
    if not seen:
        return tool_calls(("length", {}))
    if len(seen) <= int(seen[0]):
        return tool_calls(("get", {"index": len(seen) - 1}))
    numbers = [int(one) for one in seen[1:]]
    word = next(word for word in ("total", "largest", "smallest") if word in text)
    answer = {"total": sum, "largest": max, "smallest": min}[word](numbers)
    can = {
        "weak": word == "total" and sum(numbers) % 2 == 0,
        "strong": word != "smallest",
    }
    return tool_calls(("done", {"answer": answer if can[body["model"]] else -1}))


@needs_sandbox
@pytest.mark.timeout(120)
async def test_models_duplicates_and_likeness_decide_what_is_kept_and_where(
    court: Court, tmp_path: Path
) -> None:
    configs = [draw(seed) for seed in range(3)]
    made = [
        make(env, value, title=f"Tell the {word} of the numbers.", concept=env, configs=configs)
        for env, value, word in (
            ("total", "sum(numbers)", "total"),
            # Another sample of a model may have the same name.
            ("total", "sum(sorted(numbers))", "total"),
            ("largest", "max(numbers)", "largest"),
            ("smallest", "min(numbers)", "smallest"),
        )
    ]
    async with serve(plays) as endpoint:
        recipe = await asyncio.to_thread(
            recipe_for,
            tmp_path,
            *(f"problem_{number}" for number in range(len(made))),
            filters=FilterRecipe(
                model="weak",
                stronger="strong",
                base_url=endpoint.url,
                samples=1,
                duplicates=1.0,
                up_to=1.0,
            ),
            split=SplitRecipe(validation=0.4, test=0.3),
        )
        await run(recipe, tmp_path, court)
        files = await asyncio.to_thread(records, tmp_path)
        for file, one in zip(files, made, strict=True):
            # As if the verifier had passed them.
            await asyncio.to_thread(file.write_bytes, msgspec.json.encode(Making(made=(one,))))
        report = await run(recipe, tmp_path, court)
        asked = [body for body in endpoint.requests if len(body["messages"]) == 1]
    # The stronger model is asked only about tasks that the other never won.
    odd = sum(sum(config["numbers"]) % 2 for config in configs)
    assert Counter(one["model"] for one in asked) == {"weak": 4 * 3, "strong": 2 * odd + 2 * 3}
    assert 0 < odd < 3
    assert report.envs == 2 and report.tasks == 6 and report.quarantined == 3
    reasons = {(one.stage, one.env): one.reason for one in report.refusals}
    assert reasons.pop(("pass rate", "smallest")) == "no task left"
    ((stage, env), reason) = reasons.popitem()
    assert not reasons and (stage, reason) == ("dedup", "duplicate by answers")
    assert env in ("total", "total_v2")
    text = await asyncio.to_thread((tmp_path / "out" / "quarantine.jsonl").read_text)
    lines = [msgspec.json.decode(line) for line in text.splitlines()]
    assert [(one["env"], one["reason"]) for one in lines] == [("smallest", "never won")] * 3
    # Two concepts, but nearly one text: they are not on two sides.
    assert {side: count.envs for side, count in report.splits.items()} == {
        "train": 2,
        "validation": 0,
        "test": 0,
    }


@pytest.mark.parametrize("check", Check)
def test_only_findings_that_make_an_environment_wrong_refuse_it(check: Check) -> None:
    made = [make("total", "sum(numbers)", problem="adding"), make("largest", "max(numbers)")]
    findings = [Finding(check=check, env="total", detail="so it is", config=draw(0))]
    kept, refusals, audit = audited(made, findings)
    if check in (Check.REFERENCES_WRONG, Check.OBSERVE_ONLY_WINS, Check.ANSWER_LEAKS):
        assert kept == made[1:]
        (refusal,) = refusals
        assert (refusal.problem, refusal.env, refusal.stage) == ("adding", "total", "audit")
        assert (refusal.reason, refusal.detail) == (check.value, "so it is")
        assert not any(msgspec.structs.astuple(audit))
    else:
        assert kept == made and not refusals
        assert audit.duplicates == (check is Check.DUPLICATES)


def test_two_environments_of_one_name_get_names_of_their_own() -> None:
    made = [make("total", "sum(numbers)", problem=name) for name in "abc"]
    found = with_own_ids([*made, make("total_v2", "max(numbers)")])
    assert [one.draft.env for one in found] == ["total", "total_v2", "total_v3", "total_v2_v2"]
    assert found[0] == made[0]
    for one, name in zip(found, ("Total", "TotalV2", "TotalV3", "TotalV2V2"), strict=True):
        assert f"class {name}(ToolEnv):" in one.draft.source
    assert [one.draft.problem for one in found][:3] == ["a", "b", "c"]


def test_the_stages_of_a_problem_are_counted_each_by_its_own() -> None:
    def refusal(stage: str, problem: str) -> Refusal:
        return Refusal(problem=problem, stage=stage, reason="why")

    extracted, asked = make("total", "sum(numbers)"), make("largest", "max(numbers)")
    asked = msgspec.structs.replace(asked, draft=msgspec.structs.replace(asked.draft, origin="llm"))
    makings = [
        # The finer draft could not be made, the coarser passed.
        Making(
            made=(extracted,),
            refusals=(refusal("extract", "total"), refusal("verify", "total")),
            drafts=2,
            is_solved=True,
            seconds=1.5,
        ),
        Making(
            made=(asked,),
            refusals=(refusal("extract", "largest"), refusal("llm", "largest")),
            drafts=2,
            asked=2,
            is_solved=True,
            seconds=2.0,
        ),
        Making(refusals=(refusal("solve", "odd"),)),
        # A draft that came along.
        Making(refusals=(refusal("verify", "recorded"),), drafts=1, seconds=0.5),
    ]
    counts = Counts()
    recipe = SynthRecipe(llm=LlmRecipe(enabled=True))
    count_made(counts, recipe, 3, makings, [extracted, asked])
    assert {one.name: (one.num_in, one.num_out, one.unit) for one in counts.stages} == {
        "solve": (3, 2, "problems"),
        "extract": (2, 1, "problems"),
        "llm": (3, 2, "drafts"),
        "verify": (5, 2, "drafts"),
    }
    assert counts.stages[-1].seconds == 4.0 and len(counts.refusals) == 6
    counts = Counts()
    count_made(counts, SynthRecipe(extract=ExtractRecipe(enabled=False)), 3, makings, [asked])
    assert [one.name for one in counts.stages] == ["solve", "verify"]
