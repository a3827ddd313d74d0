"""Taxis drive along one long street, one kilometre per minute; places are kilometre marks. Taxi k waits at
`homes[k]` at first. Calls come in order: call number i in minute `times[i]` (never earlier than the one
before), from `origins[i]`, for a ride to `ends[i]`, which is another place. A call is given at once to the
nearest of the taxis that are free and at most `reach` kilometres away from its origin; of equally near
ones to the one with the lowest number. If there is none, the call is lost. The taxi drives to the origin
and then to the end of the ride, is busy until it arrives there (from that very minute on it is free
again), and waits there for its next call.
A ride pays 5 coins and 2 more for each kilometre from its origin to its end; each kilometre that a taxi
drives to an origin costs 1 coin. Return what all taxis earn in all, less these costs.
"""

from random import Random
from typing import Any


def choose(ways: list[int], free_from: list[int], now: int, reach: int) -> int:
    """The nearest free taxi; -1 if there is none."""
    best = -1
    for taxi in range(len(ways)):
        if free_from[taxi] > now or ways[taxi] > reach:
            continue
        if best < 0 or ways[taxi] < ways[best]:
            best = taxi
    return best


def solve(
    homes: list[int], times: list[int], origins: list[int], ends: list[int], reach: int
) -> int:
    """Earnings less costs."""
    places = list(homes)
    free_from = [0] * len(homes)
    earned = 0
    for i in range(len(times)):
        ways = [abs(place - origins[i]) for place in places]
        best = choose(ways, free_from, times[i], reach)
        if best < 0:
            continue
        ride = abs(ends[i] - origins[i])
        places[best] = ends[i]
        free_from[best] = times[i] + ways[best] + ride
        earned += 5 + 2 * ride - ways[best]
    return earned


def solve_by_tours(
    homes: list[int], times: list[int], origins: list[int], ends: list[int], reach: int
) -> int:
    """Write down the calls of each taxi, and work out from that where it is and since when."""
    tours: dict[int, list[int]] = {taxi: [] for taxi in range(len(homes))}
    costs: dict[int, int] = {}
    for call, now in enumerate(times):
        offers: list[tuple[int, int]] = []
        for taxi, tour in tours.items():
            place = ends[tour[-1]] if tour else homes[taxi]
            rides = [abs(ends[c] - origins[c]) for c in tour[-1:]]
            ready = sum(rides) + sum(times[c] + costs[c] for c in tour[-1:])
            if not tour or ready <= now:
                offers.append((abs(place - origins[call]), taxi))
        offers = [offer for offer in offers if offer[0] <= reach]
        if offers:
            costs[call], taxi = min(offers)
            tours[taxi].append(call)
    pay = sum(5 + 2 * abs(ends[call] - origins[call]) for call in costs)
    return pay - sum(costs.values())


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Two or three taxis, and calls that come a little too fast for them."""
    taxis = rng.randint(2, 3 + level // 2)
    count = rng.randint(5, 7) * (level + 1)
    times = []
    now = rng.randint(0, 3)
    for _ in range(count):
        times.append(now)
        now += rng.randint(0, 4)
    origins = [rng.randint(0, 12) for _ in range(count)]
    return {
        "homes": [rng.randint(0, 12) for _ in range(taxis)],
        "times": times,
        "origins": origins,
        "ends": [rng.choice([p for p in range(13) if p != origin]) for origin in origins],
        "reach": rng.randint(3, 9),
    }


TESTS = [
    ({"homes": [0], "times": [0], "origins": [2], "ends": [5], "reach": 5}, 9),
    ({"homes": [0], "times": [0], "origins": [2], "ends": [5], "reach": 1}, 0),
    ({"homes": [0, 4], "times": [0, 0], "origins": [2, 2], "ends": [3, 3], "reach": 9}, 10),
    (
        {"homes": [0], "times": [0, 4, 5], "origins": [1, 3, 3], "ends": [3, 0, 4], "reach": 5},
        19,
    ),
    ({"homes": [0], "times": [0, 3], "origins": [1, 3], "ends": [3, 9], "reach": 1}, 25),
    ({"homes": [0, 4, 12], "times": [0, 9], "origins": [2, 4], "ends": [3, 5], "reach": 12}, 12),
]
