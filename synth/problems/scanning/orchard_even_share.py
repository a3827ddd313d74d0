"""An orchard's trees stand in one row, and the list `yields` tells how many baskets each of them
gave, 0 or more; there are at least two trees. Two heirs divide the row by a single fence between
two neighbouring trees, so that each gets at least one tree: one heir all trees left of the fence,
the other all trees right of it. A fence that stands directly beside a tree without any basket (one
that gave 0) is not allowed, neither left nor right of such a tree. What is the smallest possible
difference between the baskets of the two heirs? If no place for the fence is allowed, the answer
is -1."""

from random import Random
from typing import Any


def solve(yields: list[int]) -> int:
    """Smallest difference of the two shares, or -1."""
    total = 0
    for baskets in yields:
        total += baskets
    left = 0
    best = -1
    for tree in range(len(yields) - 1):
        left += yields[tree]
        if yields[tree] == 0 or yields[tree + 1] == 0:
            continue
        difference = abs(total - 2 * left)
        if best < 0 or difference < best:
            best = difference
    return best


def solve_by_fences(yields: list[int]) -> int:
    """Add up both sides of each fence."""
    differences = [
        abs(sum(yields[:fence]) - sum(yields[fence:]))
        for fence in range(1, len(yields))
        if min(yields[fence - 1], yields[fence]) > 0
    ]
    return min(differences, default=-1)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Rows with bare trees; in a few of them every second tree is bare."""
    size = rng.randint(6, 9) + 6 * level
    yields = [0 if rng.random() < 0.2 else rng.randint(1, 40) for _ in range(size)]
    if rng.random() < 0.05:
        for tree in range(1, size, 2):
            yields[tree] = 0
    return {"yields": yields}


TESTS = [
    ({"yields": [5, 3, 9, 4]}, 5),
    ({"yields": [7, 7]}, 0),
    ({"yields": [6, 0, 6]}, -1),
    ({"yields": [1, 2, 0, 8, 3]}, 8),
    ({"yields": [10, 1, 1, 0, 9]}, 1),
]
