"""Sum the gaps of neighbours.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(numbers: list[int]) -> int:
    """The sum of differences, whatever their sign."""
    total = 0
    for i in range(len(numbers) - 1):
        total += abs(numbers[i + 1] - numbers[i])
    return total



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers to 40."""
    return {'numbers': [rng.randint(1, 40) for _ in range(rng.randint(4, 6) + 3 * level)]}


STATEMENT = (
    'Sum the gaps of neighbours.'
)


class SumGapsInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    numbers: list[int]


class SumGaps(stepwise.Stepwise):
    """Sum the gaps of neighbours."""

    Config = SumGapsInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: SumGapsInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.total = 0

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> int:
        return stepwise.result_of(solve, self._given)

    @stepwise.operation
    def read_size_of_numbers_minus_1(self) -> int:
        """Tell len(numbers) - 1."""
        s = self._now
        return len(s.numbers) - 1

    @stepwise.operation
    def add_to_total(self, i: int) -> dict[str, Any]:
        """Add abs(numbers[i + 1] - numbers[i]) to total.

        Args:
            i: A number that you count, from 0 up to, and without, len(numbers) - 1.
        """
        stepwise.check_count(i)
        s = self._now
        s.total += abs(s.numbers[i + 1] - s.numbers[i])
        return stepwise.shown(s, 'total')

    @stepwise.operation
    def read_total(self) -> Any:
        """Tell total, as it is now."""
        s = self._now
        return stepwise.plain(s.total)

    def oracle(self) -> Oracle:
        for i in range(int((yield ('read_size_of_numbers_minus_1', {})))):
            yield ('add_to_total', {'i': i})
        yield ('done', {'answer': json.loads((yield ('read_total', {})))})
        return
