"""A courier starts at the post office, at (0, 0), and brings parcels to houses; parcel number i weighs
`weights[i]` (at least 1) and goes to the house at (`xs[i]`, `ys[i]`). At the post office the courier packs
parcels into the bag in the order of their numbers, one on top of the other, until the next parcel would
make the bag heavier than `capacity`, or no parcel is left. A parcel that alone is heavier than `capacity` is
left aside for good when it is its turn, and packing goes on. Then the courier brings the parcels out, the
one on top of the bag first, and after the last one returns to the post office, but only if parcels are
left there that are not too heavy. The way between two places is the difference of their x plus the
difference of their y.
Return how far the courier walks in all.
"""

from itertools import pairwise
from random import Random
from typing import Any


def solve(xs: list[int], ys: list[int], weights: list[int], capacity: int) -> int:
    """Length of the courier's way."""
    distance = 0
    x = 0
    y = 0
    i = 0
    while i < len(weights):
        bag: list[int] = []
        load = 0
        while i < len(weights):
            if weights[i] <= capacity:
                if load + weights[i] > capacity:
                    break
                bag.append(i)
                load += weights[i]
            i += 1
        if bag:
            distance += abs(x) + abs(y)
            x = 0
            y = 0
        while bag:
            parcel = bag.pop()
            distance += abs(xs[parcel] - x) + abs(ys[parcel] - y)
            x = xs[parcel]
            y = ys[parcel]
    return distance


def solve_by_bags(xs: list[int], ys: list[int], weights: list[int], capacity: int) -> int:
    """Sort parcels into bags first; then draw the whole way and measure it."""
    bags: list[list[int]] = [[]]
    for parcel, weight in enumerate(weights):
        if weight > capacity:
            continue
        if sum(weights[other] for other in bags[-1]) + weight > capacity:
            bags.append([])
        bags[-1].insert(0, parcel)
    way: list[tuple[int, int]] = []
    for bag in bags:
        way.append((0, 0))
        way += [(xs[parcel], ys[parcel]) for parcel in bag]
    return sum(abs(a - c) + abs(b - d) for (a, b), (c, d) in pairwise(way))


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Bags of one to four parcels, with a parcel too heavy now and then."""
    count = rng.randint(5 * (level + 1), 8 * (level + 1))
    capacity = rng.randint(6, 12)
    return {
        "xs": [rng.randint(-6, 6) for _ in range(count)],
        "ys": [rng.randint(-6, 6) for _ in range(count)],
        "weights": [
            capacity + rng.randint(1, 3) if rng.random() < 0.12 else rng.randint(1, 6)
            for _ in range(count)
        ],
        "capacity": capacity,
    }


TESTS = [
    ({"xs": [3], "ys": [4], "weights": [1], "capacity": 5}, 7),
    ({"xs": [1, 2], "ys": [0, 0], "weights": [1, 1], "capacity": 2}, 3),
    ({"xs": [1, 2], "ys": [0, 0], "weights": [1, 1], "capacity": 1}, 4),
    ({"xs": [2], "ys": [2], "weights": [9], "capacity": 5}, 0),
    ({"xs": [1, 0, 2, 5], "ys": [1, 3, 2, 0], "weights": [2, 9, 2, 3], "capacity": 5}, 13),
]
