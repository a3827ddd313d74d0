"""Find the greatest common divisor of a hidden list, read number by number."""

import math
from random import Random
from typing import Any

from envpool.env import Oracle, ToolEnv, at, tool
from envpool.envs.numbers import MAX_NUMBER, Numbers, draw_length

# A factor that all numbers of a drawn list share, so that the answer is seldom 1.
MAX_FACTOR = 16


class RunningGcd(ToolEnv):
    """Answer: the greatest common divisor."""

    Config = Numbers

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        factor = rng.randint(2, MAX_FACTOR)
        length = draw_length(rng, level)
        return {"numbers": [factor * rng.randint(1, MAX_NUMBER // factor) for _ in range(length)]}

    def setup(self, config: Numbers) -> None:
        self._numbers = config.numbers

    def statement(self) -> str:
        return "Find the gcd of all numbers."

    def reference(self) -> int:
        return math.gcd(*self._numbers)

    @tool
    def length(self) -> int:
        """How many numbers there are."""
        return len(self._numbers)

    @tool
    def get(self, index: int) -> int:
        """Read one number.

        Args:
            index: Its position, from 0.
        """
        return at(self._numbers, index)

    def oracle(self) -> Oracle:
        divisor = 0
        for index in range(int((yield "length", {}))):
            divisor = math.gcd(divisor, int((yield "get", {"index": index})))
        yield "done", {"answer": divisor}
