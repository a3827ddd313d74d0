"""Find the second largest number."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """The second largest."""
    best = 0
    second = 0
    for i in range(len(numbers)):
        if numbers[i] > best:
            second = best
            best = numbers[i]
        elif numbers[i] > second:
            second = numbers[i]
    return second


def solve_sorted(numbers: list[int]) -> int:
    """The last but one in order."""
    return sorted(numbers)[-2]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Different numbers from 1 to 99."""
    return {"numbers": rng.sample(range(1, 100), rng.randint(3, 4) + level)}


TESTS = [({"numbers": [3, 1, 4]}, 3), ({"numbers": [7, 9]}, 7), ({"numbers": [5, 6, 7, 8]}, 7)]
