"""Environments that are one: by their texts, and by what they answer.

    made -> pairs by text ------------------------------------> kept, refusals
         -> shared inputs -> answers of each -> candidates -^   and pairs that are nearly alike
                              on each other's own tasks

The original solutions answer, in a sandbox that the caller provides; nothing is run here. Whole pools of
candidates answer one set of shared inputs first, so that the work grows with their number, not with its
square. Two environments of one problem always agree: these are one only if they are also played alike.
"""

import asyncio
import itertools
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from envpool.env import same
from envpool.task import Config
from synth.records import Made, Refusal
from synth.resemblance import similarities

STAGE = "dedup"

# Answers to compare before agreement says anything, and the share of them that may be one and the same.
MIN_SHARED, MAX_COMMON = 5, 0.8
# Shared inputs of a group of candidates, and configurations of a pair's own that are compared.
SHARED, OWN = 32, 16
# From here on two are so alike that they belong on one side of a split.
NEAR_TEXT, NEAR_ANSWERS = 0.6, 0.7
# Sandboxes asked at once.
CONCURRENCY = 4

# Answers of an environment's original solution to configurations of another; None where it has none.
Answers = Callable[[Made, Sequence[Config]], Awaitable[Sequence[Any]]]
_Ask = Callable[[Made, Sequence[Config]], Coroutine[Any, Any, list[Any]]]


class Means(StrEnum):
    """What two environments were compared by."""

    TEXT = "text"
    """Statement and sources."""
    ANSWERS = "answers"
    """What they answer to the same inputs."""


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Two environments and how alike they are."""

    first: str
    second: str
    means: Means
    alike: float
    """Share of what was compared, 0 to 1."""
    detail: str


class Deduped(msgspec.Struct, frozen=True, kw_only=True):
    """What is left, and what is so alike that it belongs on one side of a split."""

    kept: tuple[Made, ...]
    refusals: tuple[Refusal, ...]
    near: tuple[Pair, ...]
    """Pairs of kept ones below the threshold."""


async def dedup(made: Sequence[Made], *, answers: Answers, threshold: float) -> Deduped:
    """Keep one of each set of duplicates, that with the most tasks. `threshold` is the share of `Pair`."""
    by_text = await asyncio.to_thread(text_pairs, made)
    by_answers = await behaviour_pairs(made, answers=answers, threshold=threshold)
    return choose(made, [*by_text, *by_answers], threshold=threshold)


def choose(made: Sequence[Made], pairs: Sequence[Pair], *, threshold: float) -> Deduped:
    """The best environments of which no two are duplicates."""
    duplicates = {
        frozenset((one.first, one.second)): one for one in pairs if one.alike >= threshold
    }
    kept: dict[str, Made] = {}
    refusals: list[Refusal] = []
    for one in sorted(made, key=_worth):
        env = one.draft.env
        twins = (duplicates.get(frozenset((env, other))) for other in kept)
        twin = next((pair for pair in twins if pair is not None), None)
        if twin is None:
            kept[env] = one
            continue
        other = twin.second if twin.first == env else twin.first
        refusals.append(
            Refusal(
                problem=one.draft.problem,
                env=env,
                stage=STAGE,
                reason=f"duplicate by {twin.means}",
                detail=f"as {other}, which is kept: {twin.detail}",
            )
        )
    near = [one for one in pairs if one.first in kept and one.second in kept]
    # In the order given: what comes after does not depend on which is the better.
    return Deduped(
        kept=tuple(one for one in made if one.draft.env in kept),
        refusals=tuple(refusals),
        near=tuple(near),
    )


def _worth(one: Made) -> tuple[int, float, int, str]:
    """Sorts the better one first: more tasks, more calls that are needed, more tools."""
    certified = [task.certificate.calls for task in one.tasks if task.certificate is not None]
    mean = sum(certified) / len(certified) if certified else 0.0
    return -len(one.tasks), -mean, -len(one.tools), one.draft.env


def text_pairs(made: Sequence[Made]) -> list[Pair]:
    """Pairs whose statements and sources are alike."""
    texts = [_text(one) for one in made]
    return [
        Pair(
            first=made[first].draft.env,
            second=made[second].draft.env,
            means=Means.TEXT,
            alike=alike,
            detail=f"statement and sources are alike by {alike:.0%}",
        )
        for first, second, alike in similarities(texts, at_least=NEAR_TEXT)
    ]


def _text(one: Made) -> str:
    """All that an environment says; its name is its own also where all else is copied."""
    prompt = one.tasks[0].prompt if one.tasks else ""
    name = re.search(r"^class (\w+)\(ToolEnv\)", one.draft.source, re.MULTILINE)
    source = one.draft.source.replace(name[1], "ToolEnv") if name else one.draft.source
    return "\n".join((prompt, one.draft.solutions[0], source))


async def behaviour_pairs(
    made: Sequence[Made], *, answers: Answers, threshold: float
) -> list[Pair]:
    """Pairs that answer alike, from `NEAR_ANSWERS` on; duplicates are those from `threshold` on."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def ask(one: Made, configs: Sequence[Config]) -> list[Any]:
        async with slots:
            told = list(await answers(one, configs))
        if len(told) != len(configs):
            raise ValueError(f"{one.draft.env}: {len(told)} answers to {len(configs)} inputs")
        return told

    groups: dict[str, list[Made]] = {}
    for one in made:
        if one.tasks:
            groups.setdefault(_signature(one), []).append(one)
    pairs: list[Pair] = []
    for group in groups.values():
        candidates = await _candidates(group, ask)
        async with asyncio.TaskGroup() as tasks:
            found = [
                tasks.create_task(_compare(first, second, ask, threshold=threshold))
                for first, second in candidates
            ]
        pairs += [pair for task in found if (pair := task.result()) is not None]
    return pairs


async def _candidates(group: Sequence[Made], ask: _Ask) -> list[tuple[Made, Made]]:
    """Pairs whose answers to shared inputs do not tell them apart."""
    if len(group) < 2:
        return []
    each = max(1, SHARED // len(group))
    shared = [task.config for one in group for task in one.tasks[:each]][:SHARED]
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(one, shared)) for one in group]
    told = [task.result() for task in asked]
    left = []
    for (first, of_first), (second, of_second) in itertools.combinations(
        zip(group, told, strict=True), 2
    ):
        alike, count, _ = _agreement(of_first, of_second)
        # Foreign inputs may be none for them: then their own decide.
        if count < MIN_SHARED or alike >= NEAR_ANSWERS:
            left.append((first, second))
    return left


async def _compare(first: Made, second: Made, ask: _Ask, *, threshold: float) -> Pair | None:
    """How alike two are on the tasks of both; None where that is little, or says little."""
    configs = [task.config for one in (first, second) for task in one.tasks[:OWN]]
    of_first, of_second = await ask(first, configs), await ask(second, configs)
    alike, count, common = _agreement(of_first, of_second)
    if count < MIN_SHARED or common > MAX_COMMON or alike < NEAR_ANSWERS:
        return None
    detail = f"the same answer to {round(alike * count)} of {count} shared inputs"
    if first.draft.problem == second.draft.problem and skeleton(first) != skeleton(second):
        # The same problem made into another game: kept, and on the same side.
        alike = min(alike, threshold * 0.99)
        detail += ", by other calls"
    return Pair(
        first=first.draft.env,
        second=second.draft.env,
        means=Means.ANSWERS,
        alike=alike,
        detail=detail,
    )


def _agreement(first: Sequence[Any], second: Sequence[Any]) -> tuple[float, int, float]:
    """Share of equal answers among those that both gave, their number, the commonest answer's share."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return 0.0, 0, 1.0
    equal = sum(_is_same(a, b) for a, b in both)
    counted = Counter(json.dumps(a, sort_keys=True, default=str) for a, _ in both)
    return equal / len(both), len(both), counted.most_common(1)[0][1] / len(both)


def _is_same(first: Any, second: Any) -> bool:
    try:
        return same(first, second)
    except TypeError:  # a number and a text
        return False


def skeleton(one: Made) -> frozenset[tuple[int, int]]:
    """Which call follows which in an environment's traces, tools by number of their first call.

    0 is the beginning. Names and arguments do not count, nor how often a call is repeated.
    """
    numbers: dict[str, int] = {}
    steps = set()
    for task in one.tasks:
        before = 0
        for move in task.trace:
            number = numbers.setdefault(move.name, len(numbers) + 1)
            steps.add((before, number))
            before = number
    return frozenset(steps)


def _signature(one: Made) -> str:
    """Kinds of an environment's parameters and answers: others cannot be one with it."""
    kinds = sorted(
        _kinds([task.config.get(name) for task in one.tasks]) for name in one.tasks[0].config
    )
    return f"{' '.join(kinds)} -> {_kinds([task.answer for task in one.tasks])}"


def _kinds(values: Sequence[Any]) -> str:
    """The kind that JSON values have in common, in a word."""
    values = [value for value in values if value is not None]
    kinds = {_KINDS.get(type(value), "any") for value in values}
    if kinds == {"list"}:
        return f"list of {_kinds([member for value in values for member in value])}"
    return kinds.pop() if len(kinds) == 1 else "any"


_KINDS: Mapping[type, str] = {
    bool: "bool",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}
