"""How many sets are needed at least to cover everything: exact where that is quick, else bounded.

Sets are integers, bit i for element i. Pure arithmetic: it knows nothing of environments.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Branches looked at before the bounds found so far have to do.
MAX_NODES = 1500
# Rounds of weighing the elements against each other.
ROUNDS = 60
# What a sum of weights may be above a whole number by rounding alone.
SLACK = 1e-7


class Bounds(NamedTuple):
    """Fewest sets that cover the universe: at least `low`, and `high` do."""

    low: int
    high: int


def least_cover(
    sets: Iterable[int], universe: int, *, goal: int | None = None, max_nodes: int = MAX_NODES
) -> Bounds:
    """Bounds of the fewest sets whose union has all of `universe`, which some union must have.

    With a `goal` no more is found out than whether so many are enough: `low` is above it, or `high` is not.
    """
    useful = maximal(one & universe for one in sets)
    missing = universe & ~_union(useful)
    if missing:
        raise ValueError(f"elements {missing:b} lie in no set")
    high = _greedy(useful, universe)
    if goal is not None and high <= goal:
        return Bounds(min(high, 1), high)
    low = min(high, _weighed(useful, universe))
    if low < high and (goal is None or low <= goal):
        return _Search(useful, max_nodes).run(universe, low, high, high if goal is None else goal)
    return Bounds(low, high)


def maximal(sets: Iterable[int]) -> list[int]:
    """Those that lie in no other, largest first: the others are of no use in a cover."""
    kept: list[int] = []
    for one in sorted(set(sets), key=lambda one: (-one.bit_count(), one)):
        if one and not any(one & ~other == 0 for other in kept):
            kept.append(one)
    return kept


def elements(one: int) -> list[int]:
    """The elements of a set, in order."""
    return [i for i in range(one.bit_length()) if one >> i & 1]


def _union(sets: Iterable[int]) -> int:
    found = 0
    for one in sets:
        found |= one
    return found


def _greedy(sets: Sequence[int], universe: int) -> int:
    """How many sets are taken if each time the one is that covers most of what is left."""
    left, taken = universe, 0
    while left:
        left &= ~max(sets, key=lambda one: (one & left).bit_count())
        taken += 1
    return taken


def _weighed(sets: Sequence[int], universe: int) -> int:
    """A lower bound: weights of the elements, no set above 1 in sum, cannot sum up to more than a cover.

    Any weights are right once divided by the heaviest set; those that are good are found by making
    light what lies in the heaviest set, again and again.
    """
    if not universe:
        return 0
    places = elements(universe)
    members = [[i for i in places if one >> i & 1] for one in sets]
    weights = dict.fromkeys(places, 1.0)
    best = 0.0
    for number in range(ROUNDS):
        sums = [sum(weights[i] for i in inside) for inside in members]
        heaviest = max(sums)
        best = max(best, sum(weights.values()) / heaviest)
        rate = 0.5 / math.sqrt(1 + number)
        for inside, heavy in zip(members, sums, strict=True):
            if heavy >= heaviest * (1 - SLACK):
                for i in inside:
                    weights[i] *= 1 - rate / 2
        top = max(weights.values())
        weights = {i: weight / top for i, weight in weights.items()}
    return math.ceil(best - SLACK)


class _Search:
    """Branch and bound: the element that fewest sets have must be covered by one of them."""

    def __init__(self, sets: Sequence[int], max_nodes: int) -> None:
        self._sets = sets
        self._left = max_nodes
        self._having: dict[int, list[int]] = {}
        for one in sets:
            for i in elements(one):
                self._having.setdefault(i, []).append(one)
        self._rarest_first = sorted(self._having, key=lambda i: len(self._having[i]))

    def run(self, universe: int, low: int, high: int, goal: int) -> Bounds:
        """Raise `low` as long as no cover of that size is found, within the nodes there are."""
        while low < high and low <= goal:
            found = self._covers(universe, low)
            if found is None:
                return Bounds(low, high)
            if found:
                return Bounds(low, low)
            low += 1
        return Bounds(low, high)

    def _covers(self, left: int, size: int) -> bool | None:
        """Whether `size` sets cover `left`; None where the nodes have run out."""
        if not left:
            return True
        self._left -= 1
        if self._left < 0:
            return None
        gains = sorted(((one & left).bit_count() for one in self._sets), reverse=True)
        if sum(gains[:size]) < left.bit_count():
            return False
        rarest = next(i for i in self._rarest_first if left >> i & 1)
        for one in sorted(self._having[rarest], key=lambda one: -(one & left).bit_count()):
            found = self._covers(left & ~one, size - 1)
            if found is not False:
                return found
        return False
