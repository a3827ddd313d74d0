"""Find the place of the target.

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle


def solve(numbers: list[int], target: int) -> int:
    """Where the target stands in an ascending list that has it."""
    place = 0
    while numbers[place] < target:
        place += 1
    return place



from random import Random
from typing import Any

def generate(rng: Random, level: int) -> dict[str, Any]:
    """Different numbers in order, and one of them."""
    numbers = sorted(rng.sample(range(100), rng.randint(4, 7) + 2 * level))
    return {'numbers': numbers, 'target': rng.choice(numbers)}


STATEMENT = (
    'Find the place of the target.'
)


class FindPlaceInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

    numbers: list[int]
    target: int


class FindPlace(stepwise.Stepwise):
    """Find the place of the target."""

    Config = FindPlaceInput
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)

    def setup(self, config: FindPlaceInput) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
        s.place = 0

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> int:
        return stepwise.result_of(solve, self._given)

    @stepwise.operation
    def read_target(self) -> int:
        """Tell target."""
        s = self._now
        return s.target

    @stepwise.operation
    def is_numbers_at_place_below_target(self) -> bool:
        """Whether numbers[place] < target."""
        s = self._now
        return bool(s.numbers[s.place] < s.target)

    @stepwise.operation
    def add_to_place(self) -> dict[str, Any]:
        """Add 1 to place."""
        s = self._now
        s.place += 1
        return stepwise.shown(s, 'place')

    @stepwise.operation
    def read_place(self) -> Any:
        """Tell place, as it is now."""
        s = self._now
        return stepwise.plain(s.place)

    def oracle(self) -> Oracle:
        target = int((yield ('read_target', {})))
        while (yield ('is_numbers_at_place_below_target', {})) == 'true':
            yield ('add_to_place', {})
        yield ('done', {'answer': json.loads((yield ('read_place', {})))})
        return
