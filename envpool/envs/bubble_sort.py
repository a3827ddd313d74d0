"""Sort a hidden list by exchanges of neighbours, and count them."""

from random import Random
from typing import Any

from envpool.env import Oracle, ToolEnv, at, tool
from envpool.envs.numbers import MAX_NUMBER, Numbers


class BubbleSort(ToolEnv):
    """Answer: how many pairs were swapped; right only once the list is sorted."""

    Config = Numbers

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        length = rng.randint(2, 4) if level == 0 else 4 + level
        numbers = sorted(rng.sample(range(MAX_NUMBER + 1), length))
        in_order = list(numbers)
        while numbers == in_order:
            rng.shuffle(numbers)
        return {"numbers": numbers}

    def setup(self, config: Numbers) -> None:
        self._numbers = list(config.numbers)
        self._num_swaps = 0

    def statement(self) -> str:
        return "Sort the numbers, count the swaps."

    def reference(self) -> int:
        return self._num_swaps

    def check(self, answer: int) -> bool:
        return self._numbers == sorted(self._numbers) and answer == self.reference()

    @tool
    def length(self) -> int:
        """How many numbers there are."""
        return len(self._numbers)

    @tool
    def order(self, index: int) -> str:
        """Put a number and its right neighbour in order; tells whether they were swapped or kept.

        Args:
            index: Position of the left one, from 0.
        """
        left, right = at(self._numbers, index), at(self._numbers, index + 1)
        if left <= right:
            return "kept"
        self._numbers[index : index + 2] = [right, left]
        self._num_swaps += 1
        return "swapped"

    def oracle(self) -> Oracle:
        num_swaps = 0
        for last in range(int((yield "length", {})) - 1, 0, -1):
            for index in range(last):
                num_swaps += (yield "order", {"index": index}) == "swapped"
        yield "done", {"answer": num_swaps}
