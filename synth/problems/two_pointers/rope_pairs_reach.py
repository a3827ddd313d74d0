"""A climber wants to tie two ropes together to get down a cliff that is `depth` metres high. The
list `ropes` holds the lengths of the ropes in metres in ascending order, equal lengths possible, at
least two ropes. The knot takes away `knot` metres of the two lengths together, 0 or more. How many
different pairs of two ropes are there whose length with the knot is at least `depth`? Ropes of equal
length are different ropes, and a pair is the same in either order."""

from random import Random
from typing import Any


def solve(ropes: list[int], depth: int, knot: int) -> int:
    """Number of pairs that reach down."""
    short = 0
    long = len(ropes) - 1
    num_pairs = 0
    while short < long:
        if ropes[short] + ropes[long] - knot >= depth:
            num_pairs += long - short
            long -= 1
        else:
            short += 1
    return num_pairs


def solve_by_pairs(ropes: list[int], depth: int, knot: int) -> int:
    """Tie each pair."""
    num_pairs = 0
    for one in range(len(ropes)):
        for other in range(one):
            if ropes[one] + ropes[other] - knot >= depth:
                num_pairs += 1
    return num_pairs


def generate(rng: Random, level: int) -> dict[str, Any]:
    """The depth is about what a pair of ropes reaches."""
    size = rng.randint(7, 10) + 7 * level
    ropes = sorted(rng.randint(5, 40) for _ in range(size))
    knot = rng.randint(0, 4)
    one, other = rng.sample(ropes, 2)
    return {"ropes": ropes, "depth": max(1, one + other - knot + rng.randint(-6, 6)), "knot": knot}


TESTS = [
    ({"ropes": [5, 10, 15, 20], "depth": 25, "knot": 0}, 4),
    ({"ropes": [5, 10, 15, 20], "depth": 25, "knot": 1}, 2),
    ({"ropes": [8, 8, 8], "depth": 14, "knot": 2}, 3),
    ({"ropes": [3, 4], "depth": 20, "knot": 0}, 0),
    ({"ropes": [6, 7, 30], "depth": 30, "knot": 3}, 2),
]
