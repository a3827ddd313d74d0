"""Find the last node."""

from itertools import pairwise
from random import Random
from typing import Any


def solve(start: int, after: dict[str, int]) -> int:
    """The node that none comes after."""
    node = start
    while str(node) in after:
        node = after[str(node)]
    return node


def solve_by_absence(start: int, after: dict[str, int]) -> int:
    """The one node that is nowhere a key."""
    return next((node for node in after.values() if str(node) not in after), start)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A chain of different nodes."""
    nodes = rng.sample(range(1, 100), rng.randint(3, 5) + 2 * level)
    return {"start": nodes[0], "after": {str(a): b for a, b in pairwise(nodes)}}


TESTS = [
    ({"start": 5, "after": {"5": 8, "8": 2}}, 2),
    ({"start": 7, "after": {"7": 1}}, 1),
    ({"start": 4, "after": {}}, 4),
]
