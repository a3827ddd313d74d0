"""Find the gcd."""

import math
from random import Random
from typing import Any


def solve(a: int, b: int) -> int:
    """The greatest common divisor."""
    while b > 0:
        a, b = b, a % b
    return a


def solve_by_library(a: int, b: int) -> int:
    """The same."""
    return math.gcd(a, b)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Multiples of one number."""
    factor = rng.randint(2, 12)
    high = 6 + 4 * level
    return {"a": factor * rng.randint(2, high), "b": factor * rng.randint(1, high)}


TESTS = [({"a": 12, "b": 18}, 6), ({"a": 7, "b": 0}, 7), ({"a": 5, "b": 3}, 1)]
