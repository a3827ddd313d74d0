"""A baker and a butcher share a shop assistant. The list `baker` holds the times at which the bakery
is open, the list `butcher` those of the butcher's; each time is a list of two numbers, the minute
at which the shop opens and the greater minute at which it closes. In each list the times are in
order, and each opening is later than the closing before it. Either list may be empty. A time at
which both shops are open without a break counts only if it lasts at least `least` minutes, which is
1 or more; shorter ones need no assistant. How many minutes are both open, over all times that
count?"""

from random import Random
from typing import Any


def solve(baker: list[list[int]], butcher: list[list[int]], least: int) -> int:
    """Minutes of all common times that last long enough."""
    at_baker = 0
    at_butcher = 0
    minutes = 0
    while at_baker < len(baker) and at_butcher < len(butcher):
        opens = max(baker[at_baker][0], butcher[at_butcher][0])
        closes = min(baker[at_baker][1], butcher[at_butcher][1])
        if closes - opens >= least:
            minutes += closes - opens
        if baker[at_baker][1] <= butcher[at_butcher][1]:
            at_baker += 1
        else:
            at_butcher += 1
    return minutes


def solve_by_minutes(baker: list[list[int]], butcher: list[list[int]], least: int) -> int:
    """Go through all minutes, and count each run of common ones."""
    in_baker = {minute for opens, closes in baker for minute in range(opens, closes)}
    in_butcher = {minute for opens, closes in butcher for minute in range(opens, closes)}
    minutes = 0
    run = 0
    common = in_baker & in_butcher
    for minute in range(max(common, default=0) + 2):
        if minute in common:
            run += 1
            continue
        if run >= least:
            minutes += run
        run = 0
    return minutes


def draw_times(rng: Random, num_times: int) -> list[list[int]]:
    """Opening times in order."""
    times = []
    minute = rng.randint(0, 30)
    for _ in range(num_times):
        closes = minute + rng.randint(5, 60)
        times.append([minute, closes])
        minute = closes + rng.randint(1, 40)
    return times


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A shop in twenty is closed all day."""
    num_times = rng.randint(3, 5) + 3 * level
    baker = draw_times(rng, num_times)
    butcher = draw_times(rng, num_times)
    if rng.random() < 0.05:
        butcher = []
    return {"baker": baker, "butcher": butcher, "least": rng.randint(1, 15)}


TESTS = [
    ({"baker": [[10, 30], [40, 60]], "butcher": [[20, 50]], "least": 1}, 20),
    ({"baker": [[10, 30], [40, 65]], "butcher": [[25, 60]], "least": 10}, 20),
    ({"baker": [], "butcher": [[0, 9]], "least": 1}, 0),
    ({"baker": [[0, 10]], "butcher": [[10, 20]], "least": 1}, 0),
    ({"baker": [[5, 100]], "butcher": [[0, 10], [20, 30], [95, 120]], "least": 6}, 10),
]
