"""The recorded environments: each is played, solved and lost here, as they are our own code."""

import asyncio
import json
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from configs.synth import VerifyRecipe
from envpool.env import ToolEnv, call_text
from synth.court import Court
from synth.llm import recorded
from synth.llm.prompts import FOLDER as PROMPTS
from synth.llm.prompts import Prompts
from synth.problem import Problem
from synth.records import Draft
from synth.verify import verify

DRAFTS: list[Draft] = asyncio.run(recorded.recorded_drafts())
PROBLEMS: dict[str, Problem] = {problem.id: problem for problem in recorded.recorded_problems()}
# Configurations drawn beside those that ship, at each level.
NUM_DRAWN = 20

every = pytest.mark.parametrize("draft", DRAFTS, ids=[draft.env for draft in DRAFTS])


def module(source: str, name: str) -> ModuleType:
    made = ModuleType(name)
    # The annotations of a struct are looked up in the module that its class names.
    sys.modules[name] = made
    exec(compile(source, name, "exec"), made.__dict__)
    return made


def env_of(draft: Draft) -> type[ToolEnv]:
    made = module(draft.source, f"recorded_{draft.env}")
    (found,) = (
        kind
        for kind in vars(made).values()
        if isinstance(kind, type) and issubclass(kind, ToolEnv) and kind is not ToolEnv
    )
    return found


def solve(draft: Draft, config: dict[str, Any]) -> list[Any]:
    """What each solution says; each gets arguments of its own."""
    return [
        getattr(module(source, f"solution_{draft.env}_{i}"), draft.entry)(
            **json.loads(json.dumps(config))
        )
        for i, source in enumerate(draft.solutions)
    ]


class Told:
    """What an oracle may know: the statement."""

    def __init__(self, statement: str) -> None:
        self._told = statement

    def statement(self) -> str:
        return self._told


def play(kind: type[ToolEnv], config: dict[str, Any]) -> tuple[list[str], float]:
    """The observations of the oracle's calls, and its reward."""
    env = kind()
    statement, _ = env.reset(seed=0, options=config)
    oracle = kind.oracle(Told(statement))  # pyright: ignore[reportArgumentType]
    call, seen = next(oracle), []
    while True:
        observation, reward, is_over, _, info = env.step(call_text(*call))
        assert not info["is_bad_call"], (call, observation)
        seen.append(observation)
        if is_over:
            return seen, reward
        call = oracle.send(observation)


def drawn(kind: type[ToolEnv], level: int) -> list[dict[str, Any]]:
    rng = Random(level)
    return [kind.sample(rng, level) for _ in range(NUM_DRAWN)]


def test_there_are_enough_of_different_concepts() -> None:
    assert len(DRAFTS) == len(PROBLEMS) == 15
    for names in ([d.env for d in DRAFTS], [d.concept for d in DRAFTS], [d.source for d in DRAFTS]):
        assert len(set(names)) == 15
    assert {draft.origin for draft in DRAFTS} == {"recorded"}
    assert {problem.licence for problem in PROBLEMS.values()} == {"Apache-2.0"}


@every
def test_the_oracle_wins_by_calls_alone(draft: Draft) -> None:
    kind = env_of(draft)
    assert len(draft.configs) == 10 and len(kind.tools()) >= 5
    for config in draft.configs:
        seen, reward = play(kind, config)
        assert reward == 1.0 and 10 <= len(seen) <= 60
        assert play(kind, config) == (seen, reward)
    for level in (0, 1, 2):
        for config in drawn(kind, level):
            seen, reward = play(kind, config)
            assert reward == 1.0 and 10 <= len(seen) <= 120


@every
def test_reference_and_all_solutions_agree(draft: Draft) -> None:
    kind = env_of(draft)
    assert len(draft.solutions) >= 2
    for config in [*draft.configs, *drawn(kind, 0), *drawn(kind, 1)]:
        env = kind()
        env.reset(seed=0, options=config)
        assert solve(draft, config) == [env.reference()] * len(draft.solutions)


@every
def test_tests_of_the_problem_hold(draft: Draft) -> None:
    tests = PROBLEMS[draft.problem].tests
    assert len(tests) >= 3
    for test in tests:
        assert solve(draft, test.args) == [test.answer] * len(draft.solutions)
        # What a prompt shows as an example is no task.
        assert test.args not in draft.configs


@every
def test_answers_vary_and_an_empty_one_loses(draft: Draft) -> None:
    kind = env_of(draft)
    answers = [json.dumps(solve(draft, config)[0]) for config in draft.configs]
    assert len(set(answers)) == len(answers)
    many = [json.dumps(solve(draft, config)[0]) for config in drawn(kind, 0)]
    assert max(many.count(answer) for answer in many) <= NUM_DRAWN // 4
    for config in draft.configs:
        for answer in (0, [], "", [0]):
            env = kind()
            env.reset(seed=0, options=config)
            assert env.step(call_text("done", {"answer": answer}))[1] == 0.0


@every
def test_no_call_at_the_start_shows_the_answer(draft: Draft) -> None:
    kind = env_of(draft)
    for config in draft.configs:
        answer = json.dumps(solve(draft, config)[0])
        for tool in kind.tools():
            function = tool["function"]
            if function["parameters"]["required"] or function["name"] == "done":
                continue
            env = kind()
            env.reset(seed=0, options=config)
            assert env.step(call_text(function["name"], {}))[0] != answer


@every
def test_the_statement_hides_the_configuration(draft: Draft) -> None:
    kind = env_of(draft)
    told = set()
    for config in draft.configs:
        env = kind()
        told.add(env.reset(seed=0, options=config)[0])
    assert len(told) == 1


@every
def test_tools_are_described_and_wrong_arguments_are_answered(draft: Draft) -> None:
    kind = env_of(draft)
    for tool in kind.tools():
        function = tool["function"]
        assert len(function["description"]) > 15
        properties = function["parameters"]["properties"]
        if function["name"] == "done" or not properties:
            continue
        wild = {
            name: -7 if schema["type"] == "integer" else "no such"
            for name, schema in properties.items()
        }
        env = kind()
        env.reset(seed=0, options=draft.configs[0])
        before = play(kind, draft.configs[0])
        observation, reward, is_over, _, info = env.step(call_text(function["name"], wild))
        answered = info["is_bad_call"] and observation.startswith("Error: ")
        # Asking whether any number is on a shelf is no mistake.
        assert answered or function["name"] == "is_on_shelf"
        assert (reward, is_over) == (0.0, False) and play(kind, draft.configs[0]) == before


@every
def test_some_tools_change_the_state(draft: Draft) -> None:
    kind = env_of(draft)
    changed = set()
    for config in draft.configs:
        env = kind()
        statement, _ = env.reset(seed=0, options=config)
        oracle = kind.oracle(Told(statement))  # pyright: ignore[reportArgumentType]
        call, is_over = next(oracle), False
        while not is_over:
            before = repr(vars(env))
            observation, _, is_over, _, _ = env.step(call_text(*call))
            if is_over:
                break
            if repr(vars(env)) != before:
                changed.add(call[0])
            call = oracle.send(observation)
    assert len(changed) >= (1 if draft.env in ("access_cascade", "build_order") else 2)


async def test_a_recorded_reply_that_is_broken_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy() -> None:
        (tmp_path / "replies").mkdir()
        text = (recorded.FOLDER / "problems.jsonl").read_text()
        (tmp_path / "problems.jsonl").write_text(text.splitlines()[0])
        (tmp_path / "replies" / "lift_wear.environment.md").write_text("nothing")

    await asyncio.to_thread(copy)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    with pytest.raises(RuntimeError, match=r"lift_wear\.environment\.md: the block"):
        await recorded.recorded_drafts()


def test_the_example_of_the_prompt_is_an_environment_that_wins() -> None:
    made = module(Prompts.load().example, "prompt_example")
    kind = made.CrateScale
    for level in (0, 1):
        for config in drawn(kind, level):
            seen, reward = play(kind, config)
            weights = config["weights"]
            wanted = sum(b for a, b in pairwise(weights) if b > a)
            env = kind()
            env.reset(seed=0, options=config)
            assert reward == 1.0 and env.reference() == wanted and len(seen) >= 10


def test_all_files_are_listed_as_package_data() -> None:
    root = PROMPTS.parent
    data = tomllib.loads((root.parent.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "synth.llm" in data["packages"]
    listed = {path for glob in data["package-data"]["synth.llm"] for path in root.glob(glob)}
    files = {
        path for path in root.rglob("*") if path.is_file() and path.suffix in (".md", ".jsonl")
    }
    assert files == listed and len(files) > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_task_passes_the_verifier() -> None:
    recipe = VerifyRecipe()
    async with Court(recipe) as court:
        for draft in DRAFTS:
            verdict = await verify(court, draft, PROBLEMS[draft.problem], recipe)
            assert not verdict.refusals
            assert verdict.made is not None and len(verdict.made.tasks) == recipe.configs
