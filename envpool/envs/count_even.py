"""Count the even numbers of a hidden list, read number by number."""

from random import Random
from typing import Any

from envpool.env import Oracle, ToolEnv, at, tool
from envpool.envs.numbers import Numbers, draw_numbers


class CountEven(ToolEnv):
    """Answer: how many numbers are even."""

    Config = Numbers

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        numbers = draw_numbers(rng, level)
        # At least one is even, so that 0 is never the answer.
        numbers[rng.randrange(len(numbers))] = 2 * rng.randint(0, 49)
        return {"numbers": numbers}

    def setup(self, config: Numbers) -> None:
        self._numbers = config.numbers

    def statement(self) -> str:
        return "Count the even numbers."

    def reference(self) -> int:
        return sum(number % 2 == 0 for number in self._numbers)

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
        count = 0
        for index in range(int((yield "length", {}))):
            count += int((yield "get", {"index": index})) % 2 == 0
        yield "done", {"answer": count}
