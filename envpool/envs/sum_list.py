"""Sum a hidden list, read number by number."""

from random import Random
from typing import Any

from envpool.env import Oracle, ToolEnv, at, tool
from envpool.envs.numbers import Numbers, draw_length


class SumList(ToolEnv):
    """Answer: the sum."""

    Config = Numbers

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        # Digits: sums of larger numbers are beyond a policy this small, whatever it is shown.
        return {"numbers": [rng.randint(0, 9) for _ in range(draw_length(rng, level))]}

    def setup(self, config: Numbers) -> None:
        self._numbers = config.numbers

    def statement(self) -> str:
        return "Sum all numbers."

    def reference(self) -> int:
        return sum(self._numbers)

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
        total = 0
        for index in range(int((yield "length", {}))):
            total += int((yield "get", {"index": index}))
        yield "done", {"answer": total}
