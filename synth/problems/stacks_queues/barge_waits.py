"""Barges lie one behind another in a canal. The list `heights` holds the heights of their loads from
the first barge to the last, at least one barge. Every skipper asks how many barges further back the
nearest barge lies whose load is higher than the own one, and not merely as high; the next barge
behind is 1 further back. A skipper behind whom no load is higher gets as an answer twice the number
of barges behind, which is 0 for the last one. What is the sum of all answers?"""

from random import Random
from typing import Any


def solve(heights: list[int]) -> int:
    """Sum of the distances to the next higher load."""
    waiting: list[int] = []
    total = 0
    for barge, height in enumerate(heights):
        while waiting and heights[waiting[-1]] < height:
            total += barge - waiting.pop()
        waiting.append(barge)
    last = len(heights) - 1
    while waiting:
        total += 2 * (last - waiting.pop())
    return total


def solve_by_looking_back(heights: list[int]) -> int:
    """Look for the next higher load from each barge."""
    total = 0
    for barge, height in enumerate(heights):
        behind = heights[barge + 1 :]
        for distance, other in enumerate(behind, 1):
            if other > height:
                total += distance
                break
        else:
            total += 2 * len(behind)
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Heights of which some are equal."""
    size = rng.randint(6, 9) + 6 * level
    return {"heights": [rng.randint(1, 12) for _ in range(size)]}


TESTS = [
    ({"heights": [3, 1, 2]}, 5),
    ({"heights": [4]}, 0),
    ({"heights": [2, 2, 5]}, 3),
    ({"heights": [9, 7, 5, 3]}, 12),
    ({"heights": [1, 4, 2, 3, 6]}, 6),
]
