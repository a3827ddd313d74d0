"""Groups of travellers wait for a ferry in the order of the list `groups`; each number, at least 1,
is how many people one group has. Every ferry has `seats` seats, at least 1. Groups board in their
order and are never divided. When the next group needs more seats than are still free, the ferry at
the quay leaves and an empty one takes its place, which that group boards. A group with more people
than a whole ferry has seats walks away, and the ferry at the quay stays as it is. After the last
group the ferry at the quay leaves as well, unless nobody is on board. How many seats were left
empty in all, over the ferries that left?"""

from bisect import bisect_right
from random import Random
from typing import Any


def solve(groups: list[int], seats: int) -> int:
    """Seats left empty on all ferries that left."""
    empty = 0
    aboard = 0
    for people in groups:
        if people > seats:
            continue
        if aboard + people > seats:
            empty += seats - aboard
            aboard = 0
        aboard += people
    if aboard > 0:
        empty += seats - aboard
    return empty


def solve_by_totals(groups: list[int], seats: int) -> int:
    """Jump from ferry to ferry along the running totals."""
    totals = [0]
    for people in groups:
        if people <= seats:
            totals.append(totals[-1] + people)
    num_ferries = 0
    first = 0
    while first < len(totals) - 1:
        first = bisect_right(totals, totals[first] + seats) - 1
        num_ferries += 1
    return num_ferries * seats - totals[-1]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """One group in eight fills a whole ferry or is too large for any."""
    seats = rng.randint(9, 20)
    groups = []
    for _ in range(rng.randint(6, 9) + 6 * level):
        if rng.random() < 0.125:
            groups.append(seats + rng.choice([0, 0, 1, 5]))
        else:
            groups.append(rng.randint(1, seats - 1))
    return {"groups": groups, "seats": seats}


TESTS = [
    ({"groups": [3, 4, 2, 5], "seats": 8}, 2),
    ({"groups": [9, 10], "seats": 8}, 0),
    ({"groups": [5, 12, 3], "seats": 8}, 0),
    ({"groups": [1], "seats": 6}, 5),
    ({"groups": [3, 8, 3], "seats": 8}, 10),
    ({"groups": [7, 7, 7], "seats": 10}, 9),
]
