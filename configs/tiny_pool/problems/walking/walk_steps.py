"""Walk the steps, find the node."""

from random import Random
from typing import Any


def solve(start: int, steps: int, after: dict[str, int]) -> int:
    """The node after that many steps."""
    node = start
    for _ in range(steps):
        node = after[str(node)]
    return node


def solve_by_path(start: int, steps: int, after: dict[str, int]) -> int:
    """By the whole path."""
    path = [start]
    while len(path) <= steps:
        path.append(after[str(path[-1])])
    return path[steps]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A ring of nodes, on which one may walk for ever."""
    nodes = rng.sample(range(1, 100), rng.randint(8, 12))
    ring = zip(nodes, [*nodes[1:], nodes[0]], strict=True)
    return {
        "start": nodes[0],
        "steps": rng.randint(3, 6) + 4 * level,
        "after": {str(one): other for one, other in ring},
    }


TESTS = [
    ({"start": 5, "steps": 2, "after": {"5": 8, "8": 2, "2": 5}}, 2),
    ({"start": 7, "steps": 3, "after": {"7": 1, "1": 7}}, 1),
    ({"start": 4, "steps": 0, "after": {}}, 4),
]
