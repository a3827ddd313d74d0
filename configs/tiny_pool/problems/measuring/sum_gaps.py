"""Sum the gaps of neighbours."""

from itertools import pairwise
from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """The sum of differences, whatever their sign."""
    total = 0
    for i in range(len(numbers) - 1):
        total += abs(numbers[i + 1] - numbers[i])
    return total


def solve_by_larger(numbers: list[int]) -> int:
    """Larger minus smaller, pair by pair."""
    pairs = pairwise(numbers)
    return sum(max(pair) - min(pair) for pair in pairs)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers to 40."""
    return {"numbers": [rng.randint(1, 40) for _ in range(rng.randint(4, 6) + 3 * level)]}


TESTS = [({"numbers": [3, 1, 4]}, 5), ({"numbers": [7]}, 0), ({"numbers": [2, 2, 9]}, 7)]
