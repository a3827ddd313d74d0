"""A cloakroom has a round rack. When it was filled, the numbers of its tickets, all different, hung
in ascending order; since then the rack was turned. The list `tickets` holds the numbers as they hang
now, from the place at the counter on; it is an ascending list of which some first part, possibly
nothing, was moved behind the rest. There is at least one ticket. At which position, counted from 0
at the counter, hangs the smallest number that is at least `wanted`? If all numbers are smaller than
`wanted`, the answer is -1."""

from random import Random
from typing import Any


def solve(tickets: list[int], wanted: int) -> int:
    """Position of the smallest number that is at least `wanted`, or -1."""
    size = len(tickets)
    start = 0
    high = size - 1
    while start < high:
        middle = (start + high) // 2
        if tickets[middle] > tickets[high]:
            start = middle + 1
        else:
            high = middle
    low = 0
    high = size
    while low < high:
        middle = (low + high) // 2
        if tickets[(start + middle) % size] < wanted:
            low = middle + 1
        else:
            high = middle
    if low == size:
        return -1
    return (start + low) % size


def solve_by_reading_all(tickets: list[int], wanted: int) -> int:
    """Look at each ticket."""
    best = -1
    for position, number in enumerate(tickets):
        if number >= wanted and (best < 0 or number < tickets[best]):
            best = position
    return best


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Racks of which a few were not turned; half of the wanted numbers are there."""
    size = min(rng.randint(12, 40) * 8**level, 1000)
    numbers = sorted(rng.sample(range(1, 5 * size), size))
    turned = 0 if rng.random() < 0.1 else rng.randrange(size)
    wanted = rng.choice(numbers) if rng.random() < 0.5 else rng.randint(0, 5 * size)
    return {"tickets": numbers[turned:] + numbers[:turned], "wanted": wanted}


TESTS = [
    ({"tickets": [20, 26, 31, 4, 9], "wanted": 9}, 4),
    ({"tickets": [20, 26, 31, 4, 9], "wanted": 10}, 0),
    ({"tickets": [20, 26, 31, 4, 9], "wanted": 32}, -1),
    ({"tickets": [3, 5, 8], "wanted": 1}, 0),
    ({"tickets": [6], "wanted": 6}, 0),
    ({"tickets": [14, 2, 5, 11], "wanted": 12}, 0),
]
