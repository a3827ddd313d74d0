"""Find the largest number.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(numbers: list[int]) -> int:
    """The largest."""
    best = 0
    for i in range(len(numbers)):
        if numbers[i] > best:
            best = numbers[i]
    return best



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers from 1 to 99."""
    return {'numbers': [rng.randint(1, 99) for _ in range(rng.randint(3, 5) + 2 * level)]}


STATEMENT = (
    'Find the largest number.'
)


class FindMaxInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    numbers: list[int]


class FindMax(stepwise.Stepwise):
    """Find the largest number."""

    Config = FindMaxInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: FindMaxInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.best = 0

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> int:
        return stepwise.result_of(solve, self._given)

    @stepwise.operation
    def count_numbers(self) -> int:
        """Tell len(numbers)."""
        s = self._now
        return len(s.numbers)

    @stepwise.operation
    def is_numbers_at_i_above_best(self, i: int) -> bool:
        """Whether numbers[i] > best.

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        return bool(s.numbers[i] > s.best)

    @stepwise.operation
    def set_best(self, i: int) -> dict[str, Any]:
        """Set best to numbers[i].

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        s.best = s.numbers[i]
        return stepwise.shown(s, 'best')

    @stepwise.operation
    def read_best(self) -> Any:
        """Tell best, as it is now."""
        s = self._now
        return stepwise.plain(s.best)

    def oracle(self) -> Oracle:
        for i in range(int((yield ('count_numbers', {})))):
            if (yield ('is_numbers_at_i_above_best', {'i': i})) == 'true':
                yield ('set_best', {'i': i})
        yield ('done', {'answer': json.loads((yield ('read_best', {})))})
        return
