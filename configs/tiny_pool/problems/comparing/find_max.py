"""Find the largest number."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """The largest."""
    best = 0
    for i in range(len(numbers)):
        if numbers[i] > best:
            best = numbers[i]
    return best


def solve_sorted(numbers: list[int]) -> int:
    """The last one in order."""
    return sorted(numbers)[-1]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers from 1 to 99."""
    return {"numbers": [rng.randint(1, 99) for _ in range(rng.randint(3, 5) + 2 * level)]}


TESTS = [({"numbers": [3, 1, 4]}, 4), ({"numbers": [7]}, 7), ({"numbers": [9, 9, 2]}, 9)]
