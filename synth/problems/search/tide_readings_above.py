"""A harbour's gauge wrote down the water level through one tide. The list `levels` holds the levels
in order of time, at least one: up to some reading each is greater than the one before, and from
there on each is smaller than the one before. The rising part or the falling part may be missing.
Ships may enter at each reading whose level is at least `mark`. The answer is the number of these
readings, multiplied by the position of the first of them, where positions are counted from 1. If
ships may enter at no reading, the answer is 0."""

from random import Random
from typing import Any


def find_peak(levels: list[int]) -> int:
    """Index of the highest level."""
    low = 0
    high = len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if levels[middle] < levels[middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


def solve(levels: list[int], mark: int) -> int:
    """Number of readings at the mark or above, times the position of the first."""
    peak = find_peak(levels)
    if levels[peak] < mark:
        return 0
    low = 0
    first = peak
    while low < first:
        middle = (low + first) // 2
        if levels[middle] >= mark:
            first = middle
        else:
            low = middle + 1
    last = peak
    high = len(levels) - 1
    while last < high:
        middle = (last + high + 1) // 2
        if levels[middle] >= mark:
            last = middle
        else:
            high = middle - 1
    return (last - first + 1) * (first + 1)


def solve_by_reading_all(levels: list[int], mark: int) -> int:
    """Look at each reading."""
    positions = [position for position, level in enumerate(levels, 1) if level >= mark]
    return len(positions) * positions[0] if positions else 0


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Tides with the peak anywhere; a few marks are above it."""
    size = min(rng.randint(9, 16) * 5**level, 900)
    num_rising = rng.randint(0, size - 1)
    heights = rng.sample(range(10, 10 + 4 * size), size)
    top = max(heights)
    heights.remove(top)
    levels = [*sorted(heights[:num_rising]), top, *sorted(heights[num_rising:], reverse=True)]
    mark = rng.choice(levels) + rng.randint(0, 1)
    if rng.random() < 0.05:
        mark = top + rng.randint(1, 9)
    return {"levels": levels, "mark": mark}


TESTS = [
    ({"levels": [2, 5, 9, 7, 3], "mark": 5}, 6),
    ({"levels": [2, 5, 9, 7, 3], "mark": 10}, 0),
    ({"levels": [8, 6, 1], "mark": 6}, 2),
    ({"levels": [1, 4, 6], "mark": 5}, 3),
    ({"levels": [4], "mark": 4}, 1),
    ({"levels": [1, 3, 8, 2], "mark": 0}, 4),
]
