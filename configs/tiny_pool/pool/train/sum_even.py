"""Sum the even numbers.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(numbers: list[int]) -> int:
    """The sum of the even ones."""
    total = 0
    for i in range(len(numbers)):
        if numbers[i] % 2 == 0:
            total += numbers[i]
    return total



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers to 40."""
    return {'numbers': [rng.randint(1, 40) for _ in range(rng.randint(3, 5) + 2 * level)]}


STATEMENT = (
    'Sum the even numbers.'
)


class SumEvenInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    numbers: list[int]


class SumEven(stepwise.Stepwise):
    """Sum the even numbers."""

    Config = SumEvenInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: SumEvenInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.total = 0

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
    def is_numbers_at_i_modulo_2_equal_to_0(self, i: int) -> bool:
        """Whether numbers[i] % 2 == 0.

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        return bool(s.numbers[i] % 2 == 0)

    @stepwise.operation
    def add_to_total(self, i: int) -> dict[str, Any]:
        """Add numbers[i] to total.

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers).
        """
        stepwise.check_count(i)
        s = self._now
        s.total += s.numbers[i]
        return stepwise.shown(s, 'total')

    @stepwise.operation
    def read_total(self) -> Any:
        """Tell total, as it is now."""
        s = self._now
        return stepwise.plain(s.total)

    def oracle(self) -> Oracle:
        for i in range(int((yield ('count_numbers', {})))):
            if (yield ('is_numbers_at_i_modulo_2_equal_to_0', {'i': i})) == 'true':
                yield ('add_to_total', {'i': i})
        yield ('done', {'answer': json.loads((yield ('read_total', {})))})
        return
