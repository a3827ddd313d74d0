"""A monastery's bell keeper noted how often the bell rang in each hour: the list `strokes` holds the
numbers, 0 or more, hour by hour, at least one hour. A stretch of one or more consecutive hours is
quiet if the bell rang at most `limit` times in it all together, where `limit` is 0 or more. How many
different quiet stretches are there? Two stretches are different if they begin or end at different
hours."""

from random import Random
from typing import Any


def solve(strokes: list[int], limit: int) -> int:
    """Number of quiet stretches."""
    first = 0
    total = 0
    num_quiet = 0
    for hour in range(len(strokes)):
        total += strokes[hour]
        while total > limit:
            total -= strokes[first]
            first += 1
        num_quiet += hour - first + 1
    return num_quiet


def solve_by_stretches(strokes: list[int], limit: int) -> int:
    """Add up each stretch."""
    num_quiet = 0
    for start in range(len(strokes)):
        total = 0
        for number in strokes[start:]:
            total += number
            if total <= limit:
                num_quiet += 1
    return num_quiet


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Limits that hold for stretches of a few hours; single hours may be above."""
    size = rng.randint(6, 9) + 6 * level
    strokes = [rng.randint(0, 9) for _ in range(size)]
    return {"strokes": strokes, "limit": rng.randint(5, 25 + 5 * level)}


TESTS = [
    ({"strokes": [2, 1, 3], "limit": 3}, 4),
    ({"strokes": [5, 6], "limit": 4}, 0),
    ({"strokes": [0, 0, 7, 0], "limit": 0}, 4),
    ({"strokes": [1, 1, 1], "limit": 10}, 6),
    ({"strokes": [4], "limit": 4}, 1),
    ({"strokes": [2, 9, 2, 2], "limit": 4}, 4),
]
