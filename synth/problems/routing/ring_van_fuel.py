"""A van serves farms along a ring road of `length` kilometres. Places on it are given by their distance from
the depot, measured clockwise; the depot is at 0, and each of `stops` lies between 1 and `length` minus 1.
The van may drive either way round and always takes the shorter one between two places. It uses one litre
per kilometre and starts at the depot with a full tank of `tank` litres (at least 1); whenever it is at
the depot, it fills up. The farms are served in the order of `stops`. A farm is left out if even a full tank
would not do to drive there from the depot and back. Before driving to any other farm, the van checks
whether its fuel will do to drive there and from there back to the depot; if not, it drives to the depot
first. A farm may be listed more than once, and is served each time. After the last farm the van returns
to the depot.
Return how many kilometres the van drives in all.
"""

from random import Random
from typing import Any


def gap(a: int, b: int, length: int) -> int:
    """Kilometres between two places, the shorter way round."""
    direct = abs(a - b)
    return min(direct, length - direct)


def solve(stops: list[int], length: int, tank: int) -> int:
    """Kilometres driven."""
    place = 0
    fuel = tank
    driven = 0
    for stop in stops:
        home = gap(stop, 0, length)
        if 2 * home > tank:
            continue
        if gap(place, stop, length) + home > fuel:
            driven += gap(place, 0, length)
            place = 0
            fuel = tank
        way = gap(place, stop, length)
        driven += way
        fuel -= way
        place = stop
    return driven + gap(place, 0, length)


def measure(tour: list[int], length: int) -> int:
    """Kilometres from the depot through some farms and back."""
    kilometres = 0
    for a, b in zip([0, *tour], [*tour, 0], strict=True):
        kilometres += min((a - b) % length, (b - a) % length)
    return kilometres


def solve_by_tours(stops: list[int], length: int, tank: int) -> int:
    """Cut the farms into tours from depot to depot, each as long as one tank allows."""
    tours: list[list[int]] = [[]]
    for stop in stops:
        if measure([stop], length) > tank:
            continue
        if measure([*tours[-1], stop], length) <= tank:
            tours[-1].append(stop)
        else:
            tours.append([stop])
    return sum(measure(tour, length) for tour in tours)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A tank for one to three farms, with some farms out of reach."""
    length = rng.randint(14, 40)
    count = rng.randint(6 * (level + 1), 9 * (level + 1))
    return {
        "stops": [rng.randint(1, length - 1) for _ in range(count)],
        "length": length,
        "tank": length - rng.randint(-length // 2, 4),
    }


TESTS = [
    ({"stops": [3], "length": 10, "tank": 6}, 6),
    ({"stops": [5], "length": 10, "tank": 9}, 0),
    ({"stops": [7], "length": 10, "tank": 10}, 6),
    ({"stops": [2, 8], "length": 10, "tank": 8}, 8),
    ({"stops": [4, 5, 1], "length": 12, "tank": 9}, 8),
    ({"stops": [4, 3, 4], "length": 20, "tank": 8}, 16),
]
