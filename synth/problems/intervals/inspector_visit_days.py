"""An inspector wants to see every building site of a town. `sites` has one entry per site, at least
one: [first day, last day] on which there is work on it, both included, and the last not before the
first. A visit to the town takes one day, and on that day the inspector sees all the sites where
there is work. The inspector comes as few times as can be. Of all plans with that many visits, the
inspector prefers the one whose first visit is latest; of those alike in this, the one whose second
visit is latest, and so on. Answer the days of the visits in ascending order.
"""

from random import Random
from typing import Any


def solve(sites: list[list[int]]) -> list[int]:
    """The days of the visits."""
    days: list[int] = []
    for first, last in sorted(sites, key=lambda site: site[1]):
        if not days or days[-1] < first:
            days.append(last)
    return days


def solve_by_shared_days(sites: list[list[int]]) -> list[int]:
    """Gather sites in order of their first days for as long as they share a day."""
    days: list[int] = []
    shared_until: int | None = None
    for first, last in sorted(sites):
        if shared_until is None or first > shared_until:
            if shared_until is not None:
                days.append(shared_until)
            shared_until = last
        else:
            shared_until = min(shared_until, last)
    if shared_until is not None:
        days.append(shared_until)
    return days


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Some works take a single day, some long; many share their last or first days."""
    sites = []
    for _ in range(rng.randint(5, 9) + 5 * level):
        first = rng.randint(1, 30 + 15 * level)
        sites.append([first, first + rng.choice([0, 1, 3, 5, 8, 12])])
    return {"sites": sites}


TESTS = [
    ({"sites": [[1, 5], [4, 8], [5, 6], [9, 9]]}, [5, 9]),
    ({"sites": [[3, 7]]}, [7]),
    ({"sites": [[6, 8], [1, 2], [3, 5]]}, [2, 5, 8]),
    ({"sites": [[1, 10], [2, 9], [3, 8], [8, 20]]}, [8]),
    ({"sites": [[1, 1], [1, 4], [2, 6], [4, 4], [5, 7]]}, [1, 4, 7]),
]
