"""Find the total price.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(prices: list[int], counts: list[int]) -> int:
    """What all pieces cost together."""
    total = 0
    for i in range(len(prices)):
        total += prices[i] * counts[i]
    return total



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Prices to 20, up to five pieces each."""
    size = rng.randint(2, 3) + level
    return {'prices': [rng.randint(1, 20) for _ in range(size)], 'counts': [rng.randint(1, 5) for _ in range(size)]}


STATEMENT = (
    'Find the total price.'
)


class PriceTotalInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    prices: list[int]
    counts: list[int]


class PriceTotal(stepwise.Stepwise):
    """Find the total price."""

    Config = PriceTotalInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: PriceTotalInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.total = 0

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> int:
        return stepwise.result_of(solve, self._given)

    @stepwise.operation
    def count_prices(self) -> int:
        """Tell len(prices)."""
        s = self._now
        return len(s.prices)

    @stepwise.operation
    def add_to_total(self, i: int) -> dict[str, Any]:
        """Add prices[i] * counts[i] to total.

        Args:
            i: A number that you count, from 0 up to, and without, len(prices).
        """
        stepwise.check_count(i)
        s = self._now
        s.total += s.prices[i] * s.counts[i]
        return stepwise.shown(s, 'total')

    @stepwise.operation
    def read_total(self) -> Any:
        """Tell total, as it is now."""
        s = self._now
        return stepwise.plain(s.total)

    def oracle(self) -> Oracle:
        for i in range(int((yield ('count_prices', {})))):
            yield ('add_to_total', {'i': i})
        yield ('done', {'answer': json.loads((yield ('read_total', {})))})
        return
