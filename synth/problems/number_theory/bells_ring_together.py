"""Each bell of a town rings at regular times. `first` gives for each bell the minute, counted from
midnight, of its first ring, 0 or later, and `every` how many minutes go by from each of its rings
to the next, at least 1. The bells go on for ever. At which minute do all bells ring together for
the first time? Answer -1 if they never do. There is at least one bell.
"""

from math import gcd
from random import Random
from typing import Any


def solve(first: list[int], every: list[int]) -> int:
    """The first minute at which all bells ring."""
    minute, step = first[0], every[0]
    for bell in range(1, len(first)):
        period = every[bell]
        tries = 0
        while minute < first[bell] or (minute - first[bell]) % period != 0:
            if minute >= first[bell]:
                tries += 1
            if tries > period:
                return -1
            minute += step
        step = step * period // gcd(step, period)
    return minute


def solve_by_pairs(first: list[int], every: list[int]) -> int:
    """No two bells may exclude each other; then walk through the rings of the slowest bell."""
    size = len(first)
    for a in range(size):
        for b in range(a):
            if (first[a] - first[b]) % gcd(every[a], every[b]):
                return -1
    slowest = every.index(max(every))
    minute = first[slowest]
    while True:
        rings = [minute >= first[b] and (minute - first[b]) % every[b] == 0 for b in range(size)]
        if all(rings):
            return minute
        minute += every[slowest]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Mostly there is such a minute; in some draws the bells were set at random."""
    size = rng.choice([2, 3, 3, 3]) + level
    every = [rng.randint(4, 11) for _ in range(size)]
    if rng.random() < 0.15:
        return {"first": [rng.randint(0, 12) for _ in range(size)], "every": every}
    together = rng.randint(20, 150)
    first = [together % period + period * rng.choice([0, 0, 0, 1]) for period in every]
    return {"first": first, "every": every}


TESTS = [
    ({"first": [1, 2], "every": [3, 5]}, 7),
    ({"first": [4], "every": [9]}, 4),
    ({"first": [0, 1], "every": [4, 6]}, -1),
    ({"first": [2, 17, 5], "every": [3, 4, 1]}, 17),
    ({"first": [0, 0, 0], "every": [2, 3, 4]}, 0),
    ({"first": [9, 0], "every": [6, 9]}, 9),
]
