"""Environments as the factory makes them, small and real: each is played for its traces."""

from collections.abc import Sequence
from random import Random
from typing import Any

from envpool.env import ToolEnv, call_text
from synth.records import Certificate, Draft, Made, MadeTask, Move

SOURCE = '''"""{title}"""

import msgspec
from envpool.env import ToolEnv, at, tool


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    numbers: list[int]


class {name}(ToolEnv):
    """{title}"""

    Config = Numbers
    Answer = {answer}

    def setup(self, config):
        self._numbers = config.numbers

    def statement(self):
        return "{title}"

    def reference(self):
        numbers = self._numbers
        return {value}

    @tool
    def length(self) -> int:
        """How many numbers there are."""
        return len(self._numbers)

    @tool
    def get(self, index: int) -> int:
        """One of the numbers.

        Args:
            index: From 0.
        """
        return at(self._numbers, index)

    @tool
    def compare(self, first: int, second: int) -> bool:
        """Whether one number is less than another.

        Args:
            first: Index of the one.
            second: Index of the other.
        """
        return at(self._numbers, first) < at(self._numbers, second)

    def oracle(self):
        numbers = []
        for index in range(int((yield "length", {{}}))):
            numbers.append(int((yield "get", {{"index": index}})))
        yield "done", {{"answer": {value}}}
'''

SOLUTION = """def solve(numbers):
    return {value}
"""


def class_name(env: str) -> str:
    return "".join(word.capitalize() for word in env.split("_"))


def draw(seed: int, size: int = 12) -> dict[str, Any]:
    rng = Random(seed)
    return {"numbers": [rng.randint(0, 99) for _ in range(size)]}


def make(
    env: str,
    value: str,
    *,
    title: str = "",
    concept: str = "",
    problem: str = "",
    configs: Sequence[dict[str, Any]] = (),
    answer: str = "int",
    level: int = 0,
) -> Made:
    """An environment whose answer is the expression `value` over `numbers`."""
    title = title or f"Tell {value} of the hidden numbers, please: look at each of them."
    source = SOURCE.format(title=title, name=class_name(env), value=value, answer=answer)
    configs = tuple(configs) or tuple(draw(seed) for seed in range(4))
    names: dict[str, Any] = {"__name__": env}
    exec(compile(source, env, "exec"), names)
    kind = names[class_name(env)]
    return Made(
        draft=Draft(
            env=env,
            problem=problem or env,
            concept=concept,
            origin="extract",
            source=source,
            configs=configs,
            solutions=(SOLUTION.format(value=value),),
        ),
        tools=kind.tools(),
        changes=(),
        tasks=tuple(_played(kind(), config, level) for config in configs),
    )


def _played(env: ToolEnv, config: dict[str, Any], level: int) -> MadeTask:
    prompt, _ = env.reset(seed=0, options=config)
    oracle = env.oracle()
    moves, call, is_over, reward = [], next(oracle), False, 0.0
    while not is_over:
        observation, reward, is_over, _, _ = env.step(call_text(*call))
        moves.append(Move(name=call[0], arguments=call[1], observation=observation))
        if not is_over:
            call = oracle.send(observation)
    assert reward == 1.0
    return MadeTask(
        config=config,
        level=level,
        answer=env.reference(),
        prompt=prompt,
        trace=tuple(moves),
        certificate=Certificate(calls=len(moves) - 1, is_exact=True, alternatives=9),
        guess_rate=0.0,
        random_rate=0.0,
    )
