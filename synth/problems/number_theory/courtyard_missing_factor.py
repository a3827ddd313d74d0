"""A quarry delivers crates of paving stones. `crates` lists for each kind of crate how many stones
are in one such crate, and `counts`, in the same order, how many crates a carter can stack of each
kind, all numbers being at least 1. An alchemist multiplies the numbers of stones of all the crates
with each other, where a kind of which there are several crates counts that many times, and wants
the product to be a square number, that is, some whole number times itself. What is the smallest
whole number, at least 1, by which the product must be multiplied further to become one?
"""

from random import Random
from typing import Any


def odd_primes(number: int) -> set[int]:
    """The primes that divide a number an odd number of times."""
    primes: set[int] = set()
    prime = 2
    while prime * prime <= number:
        while number % prime == 0:
            primes ^= {prime}
            number //= prime
        prime += 1
    if number > 1:
        primes ^= {number}
    return primes


def solve(crates: list[int], counts: list[int]) -> int:
    """The smallest factor that makes the product a square."""
    unpaired: set[int] = set()
    for stones, count in zip(crates, counts, strict=True):
        if count % 2 == 1:
            unpaired ^= odd_primes(stones)
    factor = 1
    for prime in unpaired:
        factor *= prime
    return factor


def solve_by_squares(crates: list[int], counts: list[int]) -> int:
    """Take all squares out of the whole product, the smallest first."""
    product = 1
    for stones, count in zip(crates, counts, strict=True):
        product *= stones**count
    side = 2
    while side <= max(crates):
        if product % (side * side) == 0:
            product //= side * side
        else:
            side += 1
    return product


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Small numbers, so that primes meet; kinds with an even count are among them."""
    size = rng.randint(3, 4) + 2 * level
    crates = [rng.randint(1, 40 + 20 * level) for _ in range(size)]
    return {"crates": crates, "counts": [rng.choice([1, 1, 2, 3, 4, 5]) for _ in crates]}


TESTS = [
    ({"crates": [12, 5], "counts": [1, 1]}, 15),
    ({"crates": [7, 6], "counts": [2, 4]}, 1),
    ({"crates": [1], "counts": [3]}, 1),
    ({"crates": [10, 15, 6], "counts": [1, 1, 1]}, 1),
    ({"crates": [8, 9, 21], "counts": [3, 5, 1]}, 42),
]
