"""Find the total price."""

from random import Random
from typing import Any


def solve(prices: list[int], counts: list[int]) -> int:
    """What all pieces cost together."""
    total = 0
    for i in range(len(prices)):
        total += prices[i] * counts[i]
    return total


def solve_by_pieces(prices: list[int], counts: list[int]) -> int:
    """Piece by piece."""
    return sum(price for price, count in zip(prices, counts, strict=True) for _ in range(count))


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Prices to 20, up to five pieces each."""
    size = rng.randint(2, 3) + level
    return {
        "prices": [rng.randint(1, 20) for _ in range(size)],
        "counts": [rng.randint(1, 5) for _ in range(size)],
    }


TESTS = [({"prices": [3, 2], "counts": [1, 4]}, 11), ({"prices": [], "counts": []}, 0)]
