"""A packer's log tells how crates were packed into each other. In the list `log`, a number of at
least 1 means that a new, empty crate which weighs so many kilos was put into the innermost crate
then open, or on the floor if none was open, and is open itself from then on. The number 0 means that
the innermost open crate was closed; if none was open, it means nothing. Crates still open at the end
are closed then. The weight of a packed crate is its own weight and that of all crates within it,
however deep. Crates whose packed weight is greater than `limit` need a crane. What is the sum of the
packed weights of all crates that need a crane? If none does, or the log is empty, it is 0."""

from random import Random
from typing import Any


def solve(log: list[int], limit: int) -> int:
    """Sum of the packed weights above the limit."""
    opened: list[int] = []
    total = 0
    position = 0
    while position < len(log) or opened:
        entry = log[position] if position < len(log) else 0
        position += 1
        if entry > 0:
            opened.append(entry)
            continue
        if not opened:
            continue
        weight = opened.pop()
        if weight > limit:
            total += weight
        if opened:
            opened[-1] += weight
    return total


def solve_by_crates(log: list[int], limit: int) -> int:
    """Weigh each crate from its opening to its closing."""
    total = 0
    for start, own in enumerate(log):
        if own == 0:
            continue
        weight = 0
        depth = 0
        for entry in log[start:]:
            weight += entry
            depth += 1 if entry > 0 else -1
            if depth == 0:
                break
        if weight > limit:
            total += weight
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Logs with about as many openings as closings."""
    size = rng.randint(6, 8) + 6 * level
    log = [0 if rng.random() < 0.45 else rng.randint(1, 20) for _ in range(size)]
    log[0] = rng.randint(1, 20)
    if rng.random() < 0.1:
        log.insert(0, 0)
    return {"log": log, "limit": rng.randint(4, 25)}


TESTS = [
    ({"log": [5, 3, 0, 4, 0, 0], "limit": 3}, 16),
    ({"log": [], "limit": 9}, 0),
    ({"log": [0, 6, 0, 0, 2], "limit": 4}, 6),
    ({"log": [1, 2, 3], "limit": 4}, 11),
    ({"log": [4, 0, 5, 0], "limit": 5}, 0),
    ({"log": [2, 7, 0, 1, 4, 0, 0, 3], "limit": 6}, 24),
]
