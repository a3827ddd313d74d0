"""A pottery is open from minute `opens` to minute `closes`, which is later. `firings` lists when
its kilns are lit as [begin, end] in minutes, with the end later than the begin; firings may overlap
or touch each other, may reach beyond the opening times or lie outside of them altogether, are in no
particular order, and there may be none. While the pottery is open and no firing goes on, the smith
next door may use the yard, but setting up pays only if such a stretch of time lasts at least
`shortest` minutes without a break, where `shortest` is at least 1. How many minutes are there in
all the stretches that are long enough?
"""

from random import Random
from typing import Any


def solve(firings: list[list[int]], opens: int, closes: int, shortest: int) -> int:
    """Minutes of idle stretches that are long enough."""
    firings = sorted(firings)
    idle = 0
    free_from = opens
    for begin, end in firings:
        if begin >= closes:
            break
        if begin - free_from >= shortest:
            idle += begin - free_from
        free_from = max(free_from, end)
    if closes - free_from >= shortest:
        idle += closes - free_from
    return idle


def solve_minute_by_minute(firings: list[list[int]], opens: int, closes: int, shortest: int) -> int:
    """Mark each minute and count runs of free ones."""
    is_free = [True] * (closes - opens)
    for begin, end in firings:
        for minute in range(max(begin, opens), min(end, closes)):
            is_free[minute - opens] = False
    idle = run = 0
    for free in [*is_free, False]:
        if free:
            run += 1
        else:
            if run >= shortest:
                idle += run
            run = 0
    return idle


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Firings around the opening times, some of them before or after."""
    opens = rng.randint(20, 60)
    closes = opens + rng.randint(70, 120) + 60 * level
    firings = []
    for _ in range(rng.randint(5, 8) + 4 * level):
        begin = rng.randint(opens - 20, closes + 10)
        firings.append([begin, begin + rng.randint(2, 20)])
    return {
        "firings": firings[: 0 if rng.random() < 0.02 else None],
        "opens": opens,
        "closes": closes,
        "shortest": rng.randint(1, 15),
    }


TESTS = [
    ({"firings": [[30, 40], [12, 20]], "opens": 10, "closes": 60, "shortest": 10}, 30),
    ({"firings": [], "opens": 5, "closes": 25, "shortest": 20}, 20),
    ({"firings": [], "opens": 5, "closes": 25, "shortest": 21}, 0),
    ({"firings": [[0, 90], [20, 30]], "opens": 10, "closes": 80, "shortest": 1}, 0),
    (
        {
            "firings": [[50, 55], [1, 4], [100, 120], [55, 70], [52, 53]],
            "opens": 40,
            "closes": 90,
            "shortest": 5,
        },
        30,
    ),
]
