"""Ships lie at a quay. `stays` has one entry per ship, at least one: [first day, last day, tons].
The ship is at the quay on the first day, on the last day, which is not before the first, and on all
days between. What all the ships at the quay weigh together is the quay's load on that day. Answer
two numbers: the earliest day with the greatest load, and that load in tons. All weights are above
0.
"""

from random import Random
from typing import Any


def solve(stays: list[list[int]]) -> list[int]:
    """The earliest of the heaviest days, and its load."""
    by_arrival = sorted(stays)
    by_departure = sorted(stays, key=lambda stay: stay[1])
    gone = 0
    load = 0
    best_day, best_load = 0, 0
    for first, _, tons in by_arrival:
        while by_departure[gone][1] < first:
            load -= by_departure[gone][2]
            gone += 1
        load += tons
        if load > best_load:
            best_day, best_load = first, load
    return [best_day, best_load]


def solve_for_each_arrival(stays: list[list[int]]) -> list[int]:
    """The load grows on days of arrivals only: weigh all ships on each of them."""
    best: list[int] = []
    for day in {stay[0] for stay in stays}:
        load = sum(tons for first, last, tons in stays if first <= day <= last)
        if not best or load > best[1] or (load == best[1] and day < best[0]):
            best = [day, load]
    return best


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Days close to each other, so that ships come on the day when others leave."""
    span = 15 + 12 * level
    stays = []
    for _ in range(rng.randint(4, 6) + 4 * level):
        first = rng.randint(1, span)
        last = first + rng.choice([0, 1, 2, 3, 4, 6, 9])
        stays.append([first, last, rng.choice([5, 10, 10, 15, 20, 25, 40])])
    return {"stays": stays}


TESTS = [
    ({"stays": [[1, 3, 10], [3, 6, 20], [4, 8, 15]]}, [4, 35]),
    ({"stays": [[5, 5, 7]]}, [5, 7]),
    ({"stays": [[4, 6, 10], [1, 2, 10]]}, [1, 10]),
    ({"stays": [[2, 2, 5], [2, 9, 5], [3, 3, 5]]}, [2, 10]),
    ({"stays": [[7, 9, 30], [1, 7, 30], [1, 6, 40]]}, [1, 70]),
]
