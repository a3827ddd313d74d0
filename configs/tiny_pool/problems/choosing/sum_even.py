"""Sum the even numbers."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """The sum of the even ones."""
    total = 0
    for i in range(len(numbers)):
        if numbers[i] % 2 == 0:
            total += numbers[i]
    return total


def solve_by_text(numbers: list[int]) -> int:
    """By the last digit."""
    return sum(number for number in numbers if str(number)[-1] in "02468")


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers to 40."""
    return {"numbers": [rng.randint(1, 40) for _ in range(rng.randint(3, 5) + 2 * level)]}


TESTS = [({"numbers": [3, 1, 4]}, 4), ({"numbers": [7]}, 0), ({"numbers": [8, 0, 2]}, 10)]
