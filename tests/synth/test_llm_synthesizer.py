"""`synth.llm.synthesizer`: drafts from a server that answers well, badly, and not at all."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.load import ConfigError
from synth.chat import EndpointError
from synth.llm.recorded import recorded_problems
from synth.llm.synthesizer import Synthesizer
from synth.problem import Problem
from synth.records import Draft, Refusal
from tests.synth.llm_server import (
    ENVIRON,
    ENVIRONMENT,
    KEY,
    PROBLEM,
    SOLVER,
    Answer,
    Pauses,
    Script,
    Served,
    good,
    is_about_solver,
    make_recipe,
    serve,
)

# A module that would do harm where it is imported, and one whose tool never ends.
MALICIOUS = ENVIRONMENT.replace("TOP_FLOOR = 30", "TOP_FLOOR = 30\nopen('/tmp/harm', 'w').close()")
ENDLESS = ENVIRONMENT.replace("return self._floor\n", "while True:\n            pass\n")


@asynccontextmanager
async def asked(
    tmp_path: Path, script: Script | list[Answer], **settings: Any
) -> AsyncIterator[tuple[Synthesizer, Served]]:
    async with serve(script) as served:
        recipe = make_recipe(served.url, **settings)
        async with Synthesizer(recipe, tmp_path, environ=ENVIRON, sleep=Pauses()) as synthesizer:
            yield synthesizer, served


def drafts_of(found: list[Draft | Refusal]) -> list[Draft]:
    return [one for one in found if isinstance(one, Draft)]


def texts(folder: Path) -> list[str]:
    """All files below a folder."""
    return [path.read_text() for path in folder.rglob("*") if path.is_file()]


def problems(count: int) -> list[Problem]:
    return [
        msgspec.structs.replace(PROBLEM, id=f"problem_{i}", statement=f"{i}. {PROBLEM.statement}")
        for i in range(count)
    ]


async def test_a_draft_has_environment_and_solvers(tmp_path: Path) -> None:
    async with asked(tmp_path, good, solvers=2) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
    assert (draft.env, draft.problem, draft.origin) == ("lift_wear", PROBLEM.id, "llm")
    assert draft.concept == PROBLEM.concept and draft.entry == PROBLEM.entry
    assert draft.source in ENVIRONMENT and len(draft.configs) == 10
    # The original ones first; the two solvers say the same here, and are one.
    assert draft.solutions[:-1] == PROBLEM.solutions and draft.solutions[-1] in SOLVER
    assert any("environment 1" in note for note in draft.notes)
    assert len(served.bodies) == 3
    assert len({body["seed"] for body in served.bodies}) == 3
    assert {body["temperature"] for body in served.bodies} == {0.8}


async def test_a_solver_is_asked_for_from_the_statement_alone(tmp_path: Path) -> None:
    async with asked(tmp_path, good, solvers=1) as (synthesizer, served):
        await synthesizer.drafts(PROBLEM)
    (about_solver,) = (body for body in served.bodies if is_about_solver(body))
    (about_environment,) = (body for body in served.bodies if not is_about_solver(body))
    text = about_solver["messages"][0]["content"]
    assert PROBLEM.statement in text
    assert "def solve(start: int, calls: list[list[int]]) -> int" in text
    for solution in PROBLEM.solutions:
        lines = [line.strip() for line in solution.splitlines() if len(line.strip()) > 12]
        told = [line for line in lines if line in text and not line.startswith("def solve")]
        assert not told
    assert PROBLEM.solutions[0].strip() in about_environment["messages"][0]["content"]


async def test_a_checker_goes_to_who_writes_the_environment_only(tmp_path: Path) -> None:
    checker = "def check(answer, start, calls):\n    return answer > 0"
    problem = msgspec.structs.replace(PROBLEM, checker=checker)
    async with asked(tmp_path, good, solvers=1) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(problem))
    assert draft.checker == checker
    told = {is_about_solver(body): body["messages"][0]["content"] for body in served.bodies}
    assert checker in told[False] and "answer > 0" not in told[True]


async def test_a_program_on_standard_input_is_asked_about_as_one(tmp_path: Path) -> None:
    problem = Problem(
        id="double", statement="Print it twice.", solutions=("print(input() * 2)",), kind="stdin"
    )
    async with asked(tmp_path, good, solvers=1) as (synthesizer, _):
        about_environment, about_solver = synthesizer.requests([problem]).values()
    assert "same names, and hold plain JSON: `stdin`" in about_environment.messages[0].content
    assert "reads standard input and prints" in about_solver.messages[0].content
    assert "input()" not in about_solver.messages[0].content


async def test_samples_differ_and_equal_ones_are_one(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        text = ENVIRONMENT.replace("LiftWear", "LiftWork") if body["seed"] == 2 else ENVIRONMENT
        return Answer(text=text)

    async with asked(tmp_path, answer, samples=3) as (synthesizer, served):
        drafts = drafts_of(await synthesizer.drafts(PROBLEM))
    assert [draft.env for draft in drafts] == ["lift_wear", "lift_work"]
    assert len({body["messages"][0]["content"] for body in served.bodies}) == 3


@pytest.mark.parametrize(
    ("bad", "reason", "carried"),
    [
        (Answer(text=ENVIRONMENT, finish="length"), "truncated", "was cut off"),
        (Answer(text="Here it is:\n```python\nx = 1\n```"), "format", "python environment"),
        (Answer(text=ENVIRONMENT.replace("(ToolEnv)", "(ToolEnv")), "syntax", "cannot be parsed"),
        (Answer(text=ENVIRONMENT.replace("(ToolEnv)", "")), "class", "exactly one"),
    ],
)
async def test_a_bad_reply_goes_back_with_what_is_wrong(
    tmp_path: Path, bad: Answer, reason: str, carried: str
) -> None:
    async with asked(tmp_path, [bad, Answer(text=ENVIRONMENT)]) as (synthesizer, served):
        (draft,) = await synthesizer.drafts(PROBLEM)
        assert isinstance(draft, Draft)
        assert carried in served.bodies[1]["messages"][-1]["content"]
        assert [one.reason for one in synthesizer.refusals] == [reason]
        assert synthesizer.usage.failures == {reason: 1}
    roles = [message["role"] for message in served.bodies[1]["messages"]]
    # Half a reply is not sent back.
    assert roles == (["user"] if reason == "truncated" else ["user", "assistant", "user"])


async def test_repairs_of_a_bad_reply_end(tmp_path: Path) -> None:
    async with asked(tmp_path, lambda _: Answer(text="```\n```"), repairs=2) as (
        synthesizer,
        served,
    ):
        (refusal,) = await synthesizer.drafts(PROBLEM)
        assert isinstance(refusal, Refusal)
        assert (refusal.stage, refusal.reason, refusal.problem) == ("llm", "format", PROBLEM.id)
        assert len(served.bodies) == 3 and len(synthesizer.refusals) == 3


async def test_who_declines_is_not_asked_again(tmp_path: Path) -> None:
    async with asked(tmp_path, [Answer(text="I'm sorry, I can't.")]) as (synthesizer, served):
        (refusal,) = await synthesizer.drafts(PROBLEM)
        assert isinstance(refusal, Refusal) and refusal.reason == "refusal"
        assert len(served.bodies) == 1


async def test_a_solver_that_fails_leaves_the_draft(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Answer:
        return Answer(text="I cannot do that.") if is_about_solver(body) else good(body)

    async with asked(tmp_path, answer, solvers=1) as (synthesizer, _):
        draft, refusal = await synthesizer.drafts(PROBLEM)
    assert isinstance(draft, Draft) and draft.solutions == PROBLEM.solutions
    assert isinstance(refusal, Refusal) and refusal.reason == "refusal"


@pytest.mark.parametrize("text", [MALICIOUS, ENDLESS])
async def test_code_is_handed_on_without_being_run(tmp_path: Path, text: str) -> None:
    assert text != ENVIRONMENT
    harm = tmp_path / "harm"
    async with asked(tmp_path, [Answer(text=text.replace("/tmp/harm", str(harm)))]) as (one, _):
        (draft,) = await one.drafts(PROBLEM)
    assert isinstance(draft, Draft) and ("harm" in draft.source or "while True" in draft.source)
    assert not await asyncio.to_thread(harm.exists)


async def test_the_verifiers_message_goes_into_the_conversation(tmp_path: Path) -> None:
    better = ENVIRONMENT.replace("TOP_FLOOR = 30", "TOP_FLOOR = 40")
    async with asked(tmp_path, [Answer(text=ENVIRONMENT), Answer(text=better)]) as (one, served):
        (draft,) = drafts_of(await one.drafts(PROBLEM))
        repaired = await one.repair(draft, "oracle: it lost on configuration 3")
    assert isinstance(repaired, Draft) and "TOP_FLOOR = 40" in repaired.source
    first, second = served.bodies[1]["messages"][0], served.bodies[1]["messages"][1]
    assert first == served.bodies[0]["messages"][0]
    assert second == {"role": "assistant", "content": ENVIRONMENT.strip()}
    assert "oracle: it lost on configuration 3" in served.bodies[1]["messages"][2]["content"]
    assert repaired.solutions == draft.solutions and "1 repairs" in repaired.notes[-1]


async def test_repairs_of_a_draft_end(tmp_path: Path) -> None:
    script = [Answer(text=ENVIRONMENT.replace("= 30", f"= {n}")) for n in (30, 31, 32)]
    async with asked(tmp_path, script, repairs=2) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
        for _ in range(2):
            repaired = await synthesizer.repair(draft, "no")
            assert isinstance(repaired, Draft)
            draft = repaired
        assert await synthesizer.repair(draft, "no") is None
        assert len(served.bodies) == 3


async def test_the_same_again_is_no_repair(tmp_path: Path) -> None:
    async with asked(tmp_path, good, repairs=2) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
        refusal = await synthesizer.repair(draft, "no")
        assert isinstance(refusal, Refusal) and refusal.reason == "unchanged"
        assert len(served.bodies) == 3


async def test_a_draft_from_elsewhere_is_not_repaired(tmp_path: Path) -> None:
    async with asked(tmp_path, good) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
        other = msgspec.structs.replace(draft, source="x = 1")
        assert await synthesizer.repair(other, "no") is None and len(served.bodies) == 1


async def test_no_more_than_the_bound_is_under_way(tmp_path: Path) -> None:
    async with asked(tmp_path, good, samples=3, solvers=2, concurrency=3) as (synthesizer, served):
        async with asyncio.TaskGroup() as group:
            for problem in problems(6):
                group.create_task(synthesizer.drafts(problem))
        assert len(served.bodies) == 30 and served.max_now == 3


@pytest.mark.parametrize(
    "budget", [{"max_total_tokens": 250}, {"max_cost": 0.25, "price_in": 900.0, "price_out": 1e3}]
)
async def test_a_spent_budget_stops_asking_and_keeps_what_came(
    tmp_path: Path, budget: dict[str, Any]
) -> None:
    # A reply is 110 tokens, and costs 0.1.
    async with asked(tmp_path, good, concurrency=1, **budget) as (synthesizer, served):
        found = [await synthesizer.drafts(problem) for problem in problems(5)]
        assert [isinstance(one, Draft) for (one,) in found] == [True] * 3 + [False] * 2
        assert [one.reason for one in synthesizer.refusals] == ["budget"] * 2
        usage = synthesizer.usage
        assert usage.is_budget_spent and usage.replies == 3 == len(served.bodies)
        assert "budget spent" in str(usage)
    # A run that goes on has the same bound: what is in the cache counts, and is still to be had.
    async with asked(tmp_path, good, concurrency=1, **budget) as (synthesizer, served):
        found = [await synthesizer.drafts(problem) for problem in problems(5)]
        assert [isinstance(one, Draft) for (one,) in found] == [True] * 3 + [False] * 2
        assert not served.bodies


async def test_a_resumed_run_asks_nothing_twice(tmp_path: Path) -> None:
    bad = Answer(text=ENVIRONMENT.replace("(ToolEnv)", ""))
    script = [bad, Answer(text=ENVIRONMENT), Answer(text=ENVIRONMENT.replace("= 30", "= 31"))]
    found: list[Draft | Refusal | None] = []
    for answers in (script, []):
        async with asked(tmp_path, answers) as (synthesizer, served):
            (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
            found += [draft, await synthesizer.repair(draft, "no")]
            assert len(served.bodies) == len(answers)
            assert synthesizer.usage.cache_hits == 3 - len(answers)
            assert synthesizer.usage.prompt_tokens == 300
    assert found[:2] == found[2:]


@pytest.mark.parametrize(
    "other", [{"model": "other"}, {"temperature": 0.1}, {"max_tokens": 99}, {"samples": 2}]
)
async def test_another_request_is_asked_anew(tmp_path: Path, other: dict[str, Any]) -> None:
    for settings in ({}, other):
        async with asked(tmp_path, good, **settings) as (synthesizer, served):
            await synthesizer.drafts(PROBLEM)
            assert len(served.bodies) == 1


async def test_a_reply_that_was_torn_is_asked_for_again(tmp_path: Path) -> None:
    async with asked(tmp_path, good) as (synthesizer, _):
        await synthesizer.drafts(PROBLEM)
    (file,) = await asyncio.to_thread(lambda: list((tmp_path / "replies").rglob("*.*")))
    data = await asyncio.to_thread(file.read_bytes)
    await asyncio.to_thread(file.write_bytes, data[: len(data) // 2] + b"\xff")
    async with asked(tmp_path, good) as (synthesizer, served):
        assert drafts_of(await synthesizer.drafts(PROBLEM)) and len(served.bodies) == 1


async def test_a_useless_endpoint_is_told_of_once(tmp_path: Path) -> None:
    answer = Answer(status=404, body="no such model")
    async with asked(tmp_path, lambda _: answer, solvers=2, concurrency=1) as (synthesizer, served):
        for problem in problems(3):
            with pytest.raises(EndpointError, match=r"404: no such model.*llm\.base_url"):
                await synthesizer.drafts(problem)
        assert len(served.bodies) == 1


async def test_what_came_before_the_endpoint_broke_is_kept(tmp_path: Path) -> None:
    script = [Answer(text=ENVIRONMENT), Answer(status=401, body="no")]
    async with asked(tmp_path, script, samples=2, concurrency=1) as (synthesizer, _):
        with pytest.raises(EndpointError):
            await synthesizer.drafts(PROBLEM)
    async with asked(tmp_path, [Answer(text=ENVIRONMENT)], samples=2) as (synthesizer, _):
        await synthesizer.drafts(PROBLEM)
        assert synthesizer.usage.cache_hits == 1


async def test_one_question_that_fails_is_a_refusal(tmp_path: Path) -> None:
    async with asked(tmp_path, lambda _: Answer(status=500, body="oh"), retries=1) as (one, _):
        (refusal,) = await one.drafts(PROBLEM)
        assert isinstance(refusal, Refusal) and refusal.reason == "endpoint"
        assert one.usage.retries == 1


async def test_the_key_is_written_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    script = [
        Answer(status=500, body=f"failed for {KEY}"),
        Answer(text=f"{KEY}\n```\n```"),
        Answer(text=ENVIRONMENT.replace("TOP_FLOOR = 30", f"TOP_FLOOR = 30  # {KEY}")),
        Answer(status=401, body=f"wrong key: {KEY}"),
    ]
    async with asked(tmp_path, script) as (synthesizer, served):
        (draft,) = drafts_of(await synthesizer.drafts(PROBLEM))
        with pytest.raises(EndpointError) as caught:
            await synthesizer.repair(draft, "no")
        said = [str(caught.value), repr(synthesizer.refusals), str(synthesizer.usage), repr(draft)]
        assert served.headers[0]["Authorization"].endswith(KEY)
    written = await asyncio.to_thread(texts, tmp_path)
    said += written
    assert len(written) == 2 and not [text for text in said if KEY in text]
    assert "again in" in caplog.text and KEY not in caplog.text


async def test_a_solution_without_its_entry_is_refused_unasked(tmp_path: Path) -> None:
    odd = msgspec.structs.replace(PROBLEM, entry="answer")
    async with asked(tmp_path, good) as (synthesizer, served):
        (refusal,) = await synthesizer.drafts(odd)
        assert isinstance(refusal, Refusal) and refusal.reason == "solution" and not served.bodies


@pytest.mark.parametrize(
    ("settings", "environ", "said"),
    [
        ({"model": ""}, ENVIRON, r"llm\.model"),
        ({"base_url": ""}, ENVIRON, r"llm\.base_url"),
        ({"base_url": "https://api.example.com/v1"}, {}, "LLM_TEST_KEY"),
        ({"batch": "read"}, ENVIRON, r"llm\.replies"),
        ({"max_cost": 5.0}, ENVIRON, r"llm\.price_in"),
        ({"cache": "/proc/none"}, ENVIRON, r"llm\.cache"),
    ],
)
async def test_settings_that_cannot_work_are_refused_on_entry(
    tmp_path: Path, settings: dict[str, Any], environ: dict[str, str], said: str
) -> None:
    recipe = make_recipe(**{"base_url": "http://localhost:1/v1", **settings})
    with pytest.raises(ConfigError, match=said):
        async with Synthesizer(recipe, tmp_path, environ=environ):
            pass


async def test_every_shipped_problem_can_be_asked_about(tmp_path: Path) -> None:
    async with asked(tmp_path, good) as (synthesizer, _):
        shipped = await asyncio.to_thread(recorded_problems)
        requests = synthesizer.requests(shipped)
    assert len(requests) == len(shipped)
    for request in requests.values():
        assert "{{" not in request.messages[0].content
