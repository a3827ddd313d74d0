"""Crates come off a ship one after another. `widths` and `heights` give, in this order, how wide
and how high each is, all above 0; there is at least one. The mate builds a single tower: each crate
is either put on top of what stands there so far or carried off for good, at once when it comes. A
crate may be put on top of another only if it is narrower. No crate may be turned. How high can the
tower become?
"""

from random import Random
from typing import Any


def solve(widths: list[int], heights: list[int]) -> int:
    """The greatest height of the tower."""
    towers: list[int] = []
    tallest = 0
    for index, width in enumerate(widths):
        below = 0
        for earlier in range(index):
            if widths[earlier] > width and towers[earlier] > below:
                below = towers[earlier]
        towers.append(below + heights[index])
        tallest = max(tallest, towers[-1])
    return tallest


def solve_by_top_width(widths: list[int], heights: list[int]) -> int:
    """The highest tower for each width of its top, updated crate by crate."""
    best: dict[int, int] = {}
    for width, height in zip(widths, heights, strict=True):
        wider = [tower for top, tower in best.items() if top > width]
        best[width] = max(best.get(width, 0), max(wider, default=0) + height)
    return max(best.values())


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Widths that tend to fall, some of them equal."""
    size = rng.randint(4, 6) + 4 * level
    widths = [max(1, 2 * (size - index) + rng.randint(-5, 5)) for index in range(size)]
    return {"widths": widths, "heights": [rng.randint(1, 20) for _ in range(size)]}


TESTS = [
    ({"widths": [5, 7, 4, 6, 3], "heights": [4, 3, 2, 6, 1]}, 10),
    ({"widths": [2], "heights": [9]}, 9),
    ({"widths": [4, 4, 4], "heights": [3, 8, 5]}, 8),
    ({"widths": [1, 2, 3], "heights": [5, 1, 5]}, 5),
    ({"widths": [9, 6, 8, 7, 2], "heights": [1, 9, 2, 3, 4]}, 14),
]
