"""Find the place of the target."""

from random import Random
from typing import Any


def solve(numbers: list[int], target: int) -> int:
    """Where the target stands in an ascending list that has it."""
    place = 0
    while numbers[place] < target:
        place += 1
    return place


def solve_by_looking(numbers: list[int], target: int) -> int:
    """From the front."""
    return numbers.index(target)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Different numbers in order, and one of them."""
    numbers = sorted(rng.sample(range(100), rng.randint(4, 7) + 2 * level))
    return {"numbers": numbers, "target": rng.choice(numbers)}


TESTS = [
    ({"numbers": [3, 5, 9], "target": 9}, 2),
    ({"numbers": [7], "target": 7}, 0),
    ({"numbers": [1, 4, 6, 8], "target": 4}, 1),
]
