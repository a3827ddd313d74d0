"""A city lends bikes at stations, numbered from 0; station s has `bikes[s]` bikes at first. A truck with
room for `room` bikes, empty at first, goes to the stations in the order of `visits`. At a station with more
than `high` bikes it loads those above `high`, as many as it has room for; at a station with fewer than
`low` bikes (`low` is at most `high`) it unloads as many as are missing to `low`, or all that it has if
those are fewer; elsewhere it does nothing. Right after visit number i the riders of `rides[i]`, given as
[origin, end, riders], come to station `origin` and ride to the other station `end`, each on a bike; riders
for whom there is no bike go away annoyed. `rides` is as long as `visits`.
Return how many bikes are loaded or unloaded in all, plus 3 for each annoyed rider.
"""

from random import Random
from typing import Any


def solve(
    bikes: list[int], low: int, high: int, room: int, visits: list[int], rides: list[list[int]]
) -> int:
    """Bikes handled, and 3 for each annoyed rider."""
    here = list(bikes)
    truck = 0
    cost = 0
    for i in range(len(visits)):
        station = visits[i]
        moved = 0
        if here[station] > high:
            moved = min(here[station] - high, room - truck)
        elif here[station] < low:
            moved = -min(low - here[station], truck)
        here[station] -= moved
        truck += moved
        cost += abs(moved)
        origin, end, riders = rides[i]
        served = min(riders, here[origin])
        here[origin] -= served
        here[end] += served
        cost += 3 * (riders - served)
    return cost


def move(places: list[int], origin: int, end: int) -> bool:
    """Take one bike from a place to another, if there is one."""
    if origin not in places:
        return False
    places[places.index(origin)] = end
    return True


def solve_by_bikes(
    bikes: list[int], low: int, high: int, room: int, visits: list[int], rides: list[list[int]]
) -> int:
    """Move one bike at a time; the truck is one more place."""
    truck = len(bikes)
    places = [station for station, count in enumerate(bikes) for _ in range(count)]
    cost = 0
    for station, (origin, end, riders) in zip(visits, rides, strict=True):
        while places.count(station) > high and places.count(truck) < room:
            cost += move(places, station, truck)
        while places.count(station) < low and move(places, truck, station):
            cost += 1
        for _ in range(riders):
            if not move(places, origin, end):
                cost += 3
    return cost


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A few stations, which riders empty and fill all the time."""
    stations = rng.randint(3, 4 + level)
    count = rng.randint(6 * (level + 1), 9 * (level + 1))
    low = rng.randint(1, 3)
    rides = []
    for _ in range(count):
        origin, end = rng.sample(range(stations), 2)
        rides.append([origin, end, rng.randint(0, 4)])
    return {
        "bikes": [rng.randint(0, 8) for _ in range(stations)],
        "low": low,
        "high": low + rng.randint(0, 3),
        "room": rng.randint(2, 6),
        "visits": [rng.randrange(stations) for _ in range(count)],
        "rides": rides,
    }


TESTS = [
    (
        {
            "bikes": [5, 0],
            "low": 1,
            "high": 3,
            "room": 10,
            "visits": [0],
            "rides": [[0, 1, 1]],
        },
        2,
    ),
    (
        {
            "bikes": [5, 0],
            "low": 1,
            "high": 3,
            "room": 10,
            "visits": [0, 1],
            "rides": [[0, 1, 0], [1, 0, 2]],
        },
        6,
    ),
    (
        {
            "bikes": [9, 1],
            "low": 0,
            "high": 2,
            "room": 3,
            "visits": [0, 0],
            "rides": [[0, 1, 2], [1, 0, 1]],
        },
        3,
    ),
    (
        {
            "bikes": [0, 0],
            "low": 2,
            "high": 4,
            "room": 5,
            "visits": [1],
            "rides": [[0, 1, 2]],
        },
        6,
    ),
    (
        {
            "bikes": [4, 2, 6],
            "low": 3,
            "high": 4,
            "room": 4,
            "visits": [2, 1, 0],
            "rides": [[0, 1, 1], [1, 2, 4], [2, 0, 2]],
        },
        5,
    ),
    (
        {
            "bikes": [6, 1],
            "low": 2,
            "high": 3,
            "room": 9,
            "visits": [0, 1],
            "rides": [[0, 1, 0], [0, 1, 0]],
        },
        4,
    ),
]
