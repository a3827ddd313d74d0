"""Watchmen guard an archive. `shifts` lists their shifts as [first hour, end]: the watchman is
there from the beginning of the first hour up to the end, which is a later hour and does not itself
belong to the shift, so that [3, 5] means two hours. Shifts are in no particular order, may overlap
and may be alike; there may be none. During how many hours is exactly one watchman there?
"""

from random import Random
from typing import Any


def solve(shifts: list[list[int]]) -> int:
    """Hours with one watchman."""
    changes: list[tuple[int, int]] = []
    for first, end in shifts:
        changes.append((first, 1))
        changes.append((end, -1))
    changes.sort()
    present, since, alone = 0, 0, 0
    for hour, change in changes:
        if present == 1:
            alone += hour - since
        present += change
        since = hour
    return alone


def solve_by_the_hour(shifts: list[list[int]]) -> int:
    """Write down each hour of each shift, and strike those written twice."""
    once: set[int] = set()
    again: set[int] = set()
    for first, end in shifts:
        hours = set(range(first, end))
        again |= once & hours
        once |= hours
    return len(once - again)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Shifts that often overlap and often meet at their ends."""
    size = rng.randint(4, 6) + 4 * level
    if rng.random() < 0.02:
        size = 0
    shifts: list[list[int]] = []
    for _ in range(size):
        if shifts and rng.random() < 0.2:
            first = rng.choice(shifts)[1]
        else:
            first = rng.randint(0, 40 + 25 * level)
        shifts.append([first, first + rng.randint(1, 15)])
    return {"shifts": shifts}


TESTS = [
    ({"shifts": [[0, 5], [3, 8]]}, 6),
    ({"shifts": []}, 0),
    ({"shifts": [[2, 4], [4, 7]]}, 5),
    ({"shifts": [[1, 9], [1, 9]]}, 0),
    ({"shifts": [[6, 10], [0, 20], [8, 12], [15, 16]]}, 13),
]
