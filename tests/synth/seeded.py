"""Shipped problems made into environments, and the same with one mistake in each original solution.

Who makes a pool of a mistaken solution sees nothing wrong: reference, program and tests agree. An auditor
has a second solution.
"""

import re
from random import Random
from typing import Any

import msgspec

from configs.synth import ExtractRecipe, ProblemsRecipe
from envpool.env import ToolEnv, call_text
from synth.extract.emit import class_name
from synth.extract.synthesizer import drafts
from synth.problem import Problem, Test
from synth.readers import read
from synth.records import Draft, Made, MadeTask, Move

# By problem: what is written, and what in its place.
BUGS = {
    # One more than there is.
    "ferry_empty_seats": (
        "empty += seats - aboard\n    return",
        "empty += seats - aboard + 1\n    return",
    ),
    # The wrong operator.
    "grain_resale": ("cost += rent", "cost -= rent"),
    # The latest of several longest.
    "bellows_swing": ("if length > best_length", "if length >= best_length"),
    # Positions count from 0.
    "tide_readings_above": ("(first + 1)", "first"),
    # The last rope is forgotten.
    "rope_pairs_reach": ("long = len(ropes) - 1", "long = len(ropes) - 2"),
    # Days of a watch count from 0.
    "cliff_watch_peaks": ("(peak - start + 1)", "(peak - start)"),
    # Only what came last.
    "rhyming_neighbours": ("coins += length\n        if", "coins = length\n        if"),
    # The first stride is forgotten.
    "stepping_stone_ways": ("for stride in strides:", "for stride in strides[1:]:"),
    # Half, rounded the other way.
    "tiring_champions": ("a - (b + 1) // 2", "a - b // 2"),
    # One refusal is enough.
    "card_window": ("refusals[card] == 2", "refusals[card] == 1"),
}
NUM_TASKS = 8


def problems() -> list[Problem]:
    """Those that have a mistake to be made. Blocks."""
    return read(ProblemsRecipe(only=list(BUGS)))[0]


def seeded(problem: Problem) -> Problem:
    """With its mistake in the original solution; the others stay."""
    right, wrong = BUGS[problem.id]
    original, *others = problem.solutions
    assert original.count(right) == 1, problem.id
    mistaken = original.replace(right, wrong)
    return msgspec.structs.replace(problem, solutions=(mistaken, *others))


def made_of(problem: Problem) -> Made:
    """The finest environment of the original solution, with tasks that its own program wins.

    As the verifier has it: no task whose answer is seen without looking for it.
    """
    solve = _run(problem.solutions[0])["solve"]
    configs = [_drawn(problem, seed) for seed in range(4 * NUM_TASKS)]
    examples = [Test(args=config, answer=solve(**_copy(config))) for config in configs]
    draft = next(iter(drafts(problem, examples, ExtractRecipe(), configs=configs)))
    assert isinstance(draft, Draft), draft
    kind = _run(draft.source)[class_name(draft.env)]
    hidden = [config for config in configs if not _is_seen(kind, config)]
    tasks = tuple(_task(kind, config) for config in hidden[:NUM_TASKS])
    return Made(draft=draft, tools=kind.tools(), changes=(), tasks=tasks)


def _drawn(problem: Problem, seed: int) -> dict[str, Any]:
    return _run(problem.generator)["generate"](Random(seed), 1)


def _is_seen(kind: type[ToolEnv], config: dict[str, Any]) -> bool:
    env = kind()
    env.reset(seed=0, options=config)
    functions = [schema["function"] for schema in env.tools()]
    names = [one["name"] for one in functions if not one["parameters"]["required"]]
    told = " ".join(env.step(call_text(name, {}))[0] for name in names)
    return str(env.reference()) in re.findall(r"-?\d+", told)


def _task(kind: type[ToolEnv], config: dict[str, Any]) -> MadeTask:
    env = kind()
    prompt, _ = env.reset(seed=0, options=config)
    oracle = env.oracle()
    moves, call, is_over, reward = [], next(oracle), False, 0.0
    while not is_over:
        observation, reward, is_over, _, _ = env.step(call_text(*call))
        moves.append(Move(name=call[0], arguments=call[1], observation=observation))
        if not is_over:
            call = oracle.send(observation)
    assert reward == 1.0
    answer = env.reference()
    return MadeTask(config=config, level=0, answer=answer, prompt=prompt, trace=tuple(moves))


def _run(source: str) -> dict[str, Any]:
    """Names of a text of this repository's own."""
    names: dict[str, Any] = {"__name__": "of_the_test"}
    exec(compile(source, "of_the_test", "exec"), names)
    return names


def _copy(config: dict[str, Any]) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(config))
