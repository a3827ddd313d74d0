"""Sort, and count the swaps."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """Exchanges of neighbours."""
    swaps = 0
    for last in range(len(numbers) - 1, 0, -1):
        for i in range(last):
            if numbers[i] > numbers[i + 1]:
                numbers[i], numbers[i + 1] = numbers[i + 1], numbers[i]
                swaps += 1
    return swaps


def solve_by_pairs(numbers: list[int]) -> int:
    """Pairs in the wrong order."""
    pairs = [(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1 :]]
    return sum(a > b for a, b in pairs)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Different numbers."""
    return {"numbers": rng.sample(range(100), rng.randint(3, 4) + level)}


TESTS = [({"numbers": [3, 1, 2]}, 2), ({"numbers": [7]}, 0), ({"numbers": [1, 2]}, 0)]
