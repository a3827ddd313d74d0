"""Mills lie along canals. `prices` gives for each mill what its kind of millstone costs, and
`canals` lists pairs of different mills, by their numbers from 0, that a canal joins. Mills from
which one can get to each other by boat, over one canal or several, form a group, and a mill without
a canal is a group of its own; every mill belongs to exactly one group. Each group keeps spare
stones: one for every two of its mills, and one more if a mill is left over. All the spares of a
group are of the dearest kind that any of its mills uses. What do the spares of all groups cost
together?
"""

from random import Random
from typing import Any


def find(root: list[int], mill: int) -> int:
    """The mill that stands for the group."""
    while root[mill] != mill:
        root[mill] = root[root[mill]]
        mill = root[mill]
    return mill


def solve(prices: list[int], canals: list[list[int]]) -> int:
    """The price of all spares."""
    root = list(range(len(prices)))
    size = [1] * len(prices)
    dearest = list(prices)
    for a, b in canals:
        one, other = find(root, a), find(root, b)
        if one == other:
            continue
        root[other] = one
        size[one] += size[other]
        dearest[one] = max(dearest[one], dearest[other])
    total = 0
    for mill in range(len(prices)):
        if root[mill] == mill:
            total += (size[mill] + 1) // 2 * dearest[mill]
    return total


def solve_by_walking(prices: list[int], canals: list[list[int]]) -> int:
    """Walk through each group from a mill not seen before."""
    neighbours: dict[int, set[int]] = {mill: set() for mill in range(len(prices))}
    for a, b in canals:
        neighbours[a].add(b)
        neighbours[b].add(a)
    total = 0
    unseen = set(neighbours)
    while unseen:
        stack = [unseen.pop()]
        group = []
        while stack:
            mill = stack.pop()
            group.append(prices[mill])
            fresh = neighbours[mill] & unseen
            unseen -= fresh
            stack.extend(fresh)
        spares = len(group) // 2 + len(group) % 2
        total += spares * max(group)
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Fewer canals than mills, so that there are several groups; at times one canal twice."""
    size = rng.randint(5, 8) + 5 * level
    prices = [rng.randint(3, 60) for _ in range(size)]
    canals = [rng.sample(range(size), 2) for _ in range(rng.randint(size // 2, size - 1))]
    if rng.random() < 0.2:
        canals.append(canals[0][::-1])
    return {"prices": prices, "canals": canals}


TESTS = [
    ({"prices": [4, 9, 2, 7, 5], "canals": [[0, 1], [1, 2]]}, 30),
    ({"prices": [6], "canals": []}, 6),
    ({"prices": [1, 2, 3, 4], "canals": [[0, 1], [2, 3], [1, 2], [3, 0]]}, 8),
    ({"prices": [10, 20, 30], "canals": []}, 60),
    ({"prices": [5, 8, 8, 1], "canals": [[3, 0], [0, 3], [2, 1]]}, 13),
]
