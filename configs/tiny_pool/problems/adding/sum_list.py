"""Sum the numbers."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """The sum."""
    total = 0
    for i in range(len(numbers)):
        total += numbers[i]
    return total


def solve_at_once(numbers: list[int]) -> int:
    """The same, by the library."""
    return sum(numbers)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers below 100."""
    return {"numbers": [rng.randint(1, 33) for _ in range(rng.randint(3, 6) + 3 * level)]}


TESTS = [({"numbers": [3, 1, 4]}, 8), ({"numbers": [7]}, 7), ({"numbers": []}, 0)]
