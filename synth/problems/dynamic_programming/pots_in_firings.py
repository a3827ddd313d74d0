"""A potter fires pots in the order in which they were made: `heats` gives the heat that each needs,
always above 0. Each firing takes the pots that come next, at least one and `shelf` at most. It
costs `wood` for lighting the kiln, and for each pot in it as much as the greatest heat that a pot
of this firing needs. What does it cost at least to fire all pots? There is at least one pot, and
`shelf` is at least 1.
"""

from random import Random
from typing import Any


def solve(heats: list[int], shelf: int, wood: int) -> int:
    """The least cost of firing all pots."""
    cheapest = [0]
    for made in range(1, len(heats) + 1):
        hottest = 0
        best = -1
        for count in range(1, min(shelf, made) + 1):
            hottest = max(hottest, heats[made - count])
            cost = cheapest[made - count] + wood + count * hottest
            if best < 0 or cost < best:
                best = cost
        cheapest.append(best)
    return cheapest[-1]


def solve_by_first_firing(heats: list[int], shelf: int, wood: int) -> int:
    """Try each size of the first firing, and remember what the rest costs."""
    known: dict[int, int] = {len(heats): 0}

    def cost_from(begin: int) -> int:
        if begin not in known:
            ends = range(begin + 1, min(begin + shelf, len(heats)) + 1)
            known[begin] = min(
                wood + (end - begin) * max(heats[begin:end]) + cost_from(end) for end in ends
            )
        return known[begin]

    return cost_from(0)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Small shelves; wood that is at times cheap and at times dear."""
    size = rng.randint(4, 6) + 4 * level
    return {
        "heats": [rng.randint(1, 15) for _ in range(size)],
        "shelf": rng.choice([2, 2, 3, 3 + level]) if rng.random() < 0.95 else 1,
        "wood": rng.randint(0, 12),
    }


TESTS = [
    ({"heats": [3, 3, 8, 2], "shelf": 2, "wood": 4}, 28),
    ({"heats": [5], "shelf": 3, "wood": 2}, 7),
    ({"heats": [4, 1, 6], "shelf": 1, "wood": 5}, 26),
    ({"heats": [4, 1, 6], "shelf": 3, "wood": 0}, 11),
    ({"heats": [2, 2, 2, 2], "shelf": 4, "wood": 9}, 17),
]
