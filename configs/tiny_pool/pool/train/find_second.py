"""Find the second largest number.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(numbers: list[int]) -> int:
    """The second largest."""
    best = 0
    second = 0
    for i in range(len(numbers)):
        if numbers[i] > best:
            second = best
            best = numbers[i]
        elif numbers[i] > second:
            second = numbers[i]
    return second



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Different numbers from 1 to 99."""
    return {'numbers': rng.sample(range(1, 100), rng.randint(3, 4) + level)}


STATEMENT = (
    'Find the second largest number.'
)


class FindSecondInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    numbers: list[int]


class FindSecond(stepwise.Stepwise):
    """Find the second largest number."""

    Config = FindSecondInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: FindSecondInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.best = 0
        s.second = 0

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
    def set_second_and_set_best(self, i: int) -> dict[str, Any]:
        """Set second to best. Set best to numbers[i].

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        s.second = s.best
        s.best = s.numbers[i]
        return stepwise.shown(s, 'second', 'best')

    @stepwise.operation
    def is_numbers_at_i_above_second(self, i: int) -> bool:
        """Whether numbers[i] > second.

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        return bool(s.numbers[i] > s.second)

    @stepwise.operation
    def set_second(self, i: int) -> dict[str, Any]:
        """Set second to numbers[i].

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        s.second = s.numbers[i]
        return stepwise.shown(s, 'second')

    @stepwise.operation
    def read_second(self) -> Any:
        """Tell second, as it is now."""
        s = self._now
        return stepwise.plain(s.second)

    def oracle(self) -> Oracle:
        for i in range(int((yield ('count_numbers', {})))):
            if (yield ('is_numbers_at_i_above_best', {'i': i})) == 'true':
                yield ('set_second_and_set_best', {'i': i})
            elif (yield ('is_numbers_at_i_above_second', {'i': i})) == 'true':
                yield ('set_second', {'i': i})
        yield ('done', {'answer': json.loads((yield ('read_second', {})))})
        return
