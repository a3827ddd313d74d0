"""A shop sells yoghurt that keeps for a few days. On day d (days are counted from 0) first a delivery of
`deliveries[d]` units (may be 0) is put on the shelf; those can be sold on that day and on later days,
`lives[d]` days in all (at least 1), and are thrown away after that. Then customers want `demands[d]`
units (may be 0). They are given those units on the shelf whose last day of sale is the nearest; if there
are too few units on the shelf, the rest of the wish is lost. The three lists are equally long.
The freshness of a unit that is sold is the number of days from the day on which it is sold to its last
day of sale: 0 on the last day itself. Return the freshness of all units sold, added up.
"""

from random import Random
from typing import Any


def solve(deliveries: list[int], lives: list[int], demands: list[int]) -> int:
    """Freshness of all that was sold."""
    shelf: list[list[int]] = []
    freshness = 0
    for day in range(len(deliveries)):
        shelf.append([day + lives[day] - 1, deliveries[day]])
        shelf.sort()
        while shelf and shelf[0][0] < day:
            shelf.pop(0)
        wanted = demands[day]
        while shelf and wanted > 0:
            last, units = shelf[0]
            sold = min(units, wanted)
            freshness += sold * (last - day)
            wanted -= sold
            shelf[0][1] -= sold
            if shelf[0][1] == 0:
                shelf.pop(0)
    return freshness


def solve_by_units(deliveries: list[int], lives: list[int], demands: list[int]) -> int:
    """Count units by their last day, and sell them one at a time."""
    left: dict[int, int] = {}
    freshness = 0
    for day, (delivered, life, wanted) in enumerate(zip(deliveries, lives, demands, strict=True)):
        last = day + life - 1
        left[last] = left.get(last, 0) + delivered
        for _ in range(wanted):
            open_days = [end for end, units in left.items() if end >= day and units > 0]
            if open_days:
                left[min(open_days)] -= 1
                freshness += min(open_days) - day
    return freshness


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Demand that now falls short of the deliveries and now is more."""
    days = rng.randint(5 * (level + 1), 7 * (level + 1))
    return {
        "deliveries": [rng.choice([0, 2, 3, 4, 5, 7]) for _ in range(days)],
        "lives": [rng.randint(1, 5) for _ in range(days)],
        "demands": [rng.choice([0, 1, 2, 3, 5, 8]) for _ in range(days)],
    }


TESTS = [
    ({"deliveries": [3], "lives": [2], "demands": [2]}, 2),
    ({"deliveries": [4, 0], "lives": [1, 1], "demands": [1, 5]}, 0),
    ({"deliveries": [2, 2], "lives": [3, 1], "demands": [0, 3]}, 1),
    ({"deliveries": [5, 3, 0], "lives": [3, 4, 2], "demands": [2, 2, 6]}, 12),
    ({"deliveries": [0, 6], "lives": [2, 2], "demands": [4, 1]}, 1),
]
