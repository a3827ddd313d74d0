"""What is known of a problem before an environment is made of it: inputs, and the right answers.

    Problem -> configurations (drawn by its generator, else like its tests) -> answers of its solutions

The original solution decides; it has to pass the problem's own tests, and the others have to agree.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from configs.synth import VerifyRecipe
from envpool.env import same
from envpool.task import Config
from synth.court import Answer, Court, Failure, JobFault
from synth.inputs import inputs
from synth.problem import Problem, Test
from synth.records import Refusal
from synth.screen import Role, screen

STAGE = "solve"
# Inputs made after a problem's tests are seldom all valid.
DRAWN_PER_INPUT = 2


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A problem, and inputs that its original solution answers."""

    problem: Problem
    configs: tuple[Config, ...]
    levels: tuple[int, ...]
    answers: tuple[Any, ...]

    @property
    def examples(self) -> list[Test]:
        """The inputs with their answers, and the problem's own."""
        made = [
            Test(args=config, answer=answer)
            for config, answer in zip(self.configs, self.answers, strict=True)
        ]
        return [*self.problem.tests, *made]


async def prepare(court: Court, problem: Problem, recipe: VerifyRecipe) -> Prepared | Refusal:
    """Draw inputs and have them answered, in the sandbox."""

    def refuse(reason: str, detail: str) -> Refusal:
        return Refusal(problem=problem.id, stage=STAGE, reason=reason, detail=detail)

    role: Role = "program" if problem.kind == "stdin" else "solution"
    for number, source in enumerate(problem.solutions, start=1):
        if found := screen(source, role=role):
            return refuse("screen", f"solution {number}: {found}")
    for word, source in (("generator", problem.generator), ("checker", problem.checker)):
        if found := screen(source, role="solution"):
            return refuse("screen", f"{word}: {found}")
    try:
        drawn = await _draw(court, problem, recipe)
    except JobFault as fault:
        return refuse(f"generator: {fault.reason}", fault.detail)
    configs = [config for config, _ in drawn]
    tests = [test.args for test in problem.tests]
    try:
        found = await court.solve(
            problem.solutions, problem.entry, [*tests, *configs], kind=problem.kind
        )
    except JobFault as fault:
        return refuse(fault.reason, fault.detail)
    original, *others = found
    if wrong := _first_wrong(problem, original):
        return refuse(*wrong)
    kept = [
        (config, level, answer.value)
        for (config, level), answer in zip(drawn, original[len(tests) :], strict=True)
        if isinstance(answer, Answer)
    ]
    if not original:
        return refuse("no input", "it has neither tests nor a generator: give it one of them")
    if not kept:
        first = original[-1]
        why = (
            f"{first.reason}: {first.detail}"
            if isinstance(first, Failure)
            else "no input was drawn"
        )
        return refuse(
            "no answer", f"the original solution answers none of its inputs; the last: {why}"
        )
    if not problem.checker and (differ := _disagreement(original, others, [*tests, *configs])):
        return refuse("solvers disagree", differ)
    return Prepared(
        problem=problem,
        configs=tuple(config for config, _, _ in kept),
        levels=tuple(level for _, level, _ in kept),
        answers=tuple(answer for _, _, answer in kept),
    )


async def _draw(court: Court, problem: Problem, recipe: VerifyRecipe) -> list[tuple[Config, int]]:
    """Different configurations, each with its level. Raises JobFault."""
    if not problem.generator:
        examples = [test.args for test in problem.tests]
        made = inputs(examples, DRAWN_PER_INPUT * recipe.drawn, recipe.seed)
        return [(config, recipe.level) for config in made]
    encode = msgspec.json.Encoder(order="sorted").encode
    found: dict[bytes, tuple[Config, int]] = {}
    per_level = -(-recipe.drawn // recipe.levels)
    levels = range(recipe.level, recipe.level + recipe.levels)
    drawn = [
        await court.generate(problem.generator, per_level, level, recipe.seed) for level in levels
    ]
    # In turn: the first of them that pass become tasks, as many of each level.
    for configs in zip(*drawn, strict=True):
        for level, config in zip(levels, configs, strict=True):
            found.setdefault(encode(config), (config, level))
    return list(found.values())


def _first_wrong(problem: Problem, original: Sequence[Answer | Failure]) -> tuple[str, str] | None:
    """Reason and detail of the first of the problem's own tests that its solution fails."""
    for test, answer in zip(problem.tests, original, strict=False):
        if isinstance(answer, Failure):
            return answer.reason, f"the original solution on {_short(test.args)}: {answer.detail}"
        if not problem.checker and not same(answer.value, test.answer):
            detail = (
                f"on {_short(test.args)} it gives {_short(answer.value)}, not {_short(test.answer)}"
            )
            return "fails its own test", detail
    return None


def _disagreement(
    original: Sequence[Answer | Failure],
    others: Sequence[Sequence[Answer | Failure]],
    args: Sequence[Config],
) -> str:
    """The first input on which another solution answers otherwise, in words."""
    for number, answers in enumerate(others, start=2):
        for first, other, given in zip(original, answers, args, strict=True):
            if not isinstance(first, Answer):
                continue
            told = other.value if isinstance(other, Answer) else f"{other.reason} {other.detail}"
            if not isinstance(other, Answer) or not same(first.value, other.value):
                return f"solution {number} on {_short(given)}: {_short(told)}, not {_short(first.value)}"
    return ""


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 200 else f"{text[:200]}..."
