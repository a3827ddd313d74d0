"""Count the even numbers."""

from random import Random
from typing import Any


def solve(numbers: list[int]) -> int:
    """How many are even."""
    count = 0
    for i in range(len(numbers)):
        if numbers[i] % 2 == 0:
            count += 1
    return count


def solve_by_text(numbers: list[int]) -> int:
    """By the last digit."""
    return len([number for number in numbers if str(number)[-1] in "02468"])


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Numbers below 100."""
    return {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(3, 6) + 3 * level)]}


TESTS = [({"numbers": [3, 1, 4]}, 1), ({"numbers": [7]}, 0), ({"numbers": [8, 0, 2]}, 3)]
