"""A single market stall can be let to one tenant at a time. `offers` has one entry per tenant:
[first day, last day, rent], where the last day is not before the first and the rent, above 0, is
for the whole time. A tenant gets all the days asked for, the first and the last included, or none.
Between two tenants the stall has to stay empty for `cleaning` full days at least; 0 means that the
next tenant may come on the day after the last day of the one before. Before the first tenant and
after the last one nothing has to be kept free. What is the most rent that the stall can bring in?
"""

from bisect import bisect_left
from random import Random
from typing import Any


def solve(offers: list[list[int]], cleaning: int) -> int:
    """The most rent from tenants that do not get into each other's way."""
    offers = sorted(offers, key=lambda offer: offer[1])
    lasts: list[int] = []
    best = [0]
    for first, last, rent in offers:
        # Tenants who leave early enough are those before this place.
        before = bisect_left(lasts, first - cleaning)
        taken = best[before] + rent
        best.append(max(best[-1], taken))
        lasts.append(last)
    return best[-1]


def solve_day_by_day(offers: list[list[int]], cleaning: int) -> int:
    """The most rent that can still be had from each day on, from the last day backwards."""
    end = max(offer[1] for offer in offers)
    rest = dict.fromkeys(range(end + 1, end + cleaning + 2), 0)
    for day in range(end, min(offer[0] for offer in offers) - 1, -1):
        rest[day] = rest[day + 1]
        for first, last, rent in offers:
            if first == day:
                rest[day] = max(rest[day], rent + rest[last + cleaning + 1])
    return max(rest.values())


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Short and long lets at odds with each other; longer ones pay more, if not always."""
    offers = []
    for _ in range(rng.randint(5, 8) + 5 * level):
        first = rng.randint(1, 25 + 15 * level)
        length = rng.randint(1, 10)
        offers.append([first, first + length - 1, length * rng.randint(2, 5) + rng.randint(0, 3)])
    return {"offers": offers, "cleaning": rng.choice([0, 0, 1, 2, 3])}


TESTS = [
    ({"offers": [[1, 4, 10], [5, 6, 7], [3, 5, 12]], "cleaning": 0}, 17),
    ({"offers": [[1, 4, 10], [5, 6, 7], [3, 5, 12]], "cleaning": 1}, 12),
    ({"offers": [[8, 8, 3]], "cleaning": 4}, 3),
    ({"offers": [[1, 2, 5], [2, 3, 5], [3, 4, 5]], "cleaning": 0}, 10),
    ({"offers": [[1, 9, 20], [1, 2, 8], [5, 6, 8], [9, 9, 8]], "cleaning": 2}, 24),
    ({"offers": [[1, 9, 20], [1, 2, 8], [5, 6, 8], [9, 9, 8]], "cleaning": 3}, 20),
]
