"""In an office, each clerk passes every letter on to always the same clerk: `passes_to` gives for
each clerk, numbered from 0, the number of the next one, which may be the clerk's own. `stamps`
gives how many stamps each clerk puts on a letter each time that it comes, also when it came before.
A letter first comes to the clerk `start` and is then passed on `moves` times; the clerk it comes to
last stamps it as well. How many stamps are on it in the end?
"""

from random import Random
from typing import Any


def solve(passes_to: list[int], stamps: list[int], start: int, moves: int) -> int:
    """The stamps on the letter after its last move."""
    first_visit: dict[int, int] = {}
    totals_before: list[int] = []
    clerk, total, visits = start, 0, moves + 1
    while len(totals_before) < visits and clerk not in first_visit:
        first_visit[clerk] = len(totals_before)
        totals_before.append(total)
        total += stamps[clerk]
        clerk = passes_to[clerk]
    left = visits - len(totals_before)
    if left == 0:
        return total
    entry = first_visit[clerk]
    length = len(totals_before) - entry
    rounds, rest = divmod(left, length)
    total += rounds * (total - totals_before[entry])
    for _ in range(rest):
        total += stamps[clerk]
        clerk = passes_to[clerk]
    return total


def solve_by_following(passes_to: list[int], stamps: list[int], start: int, moves: int) -> int:
    """Follow the letter move by move."""
    total = stamps[start]
    for _ in range(moves):
        start = passes_to[start]
        total += stamps[start]
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Often many more moves than clerks, at times so few that none gets the letter twice."""
    size = rng.randint(5, 8) + 6 * level
    way = list(range(size))
    rng.shuffle(way)
    passes_to = [rng.randrange(size) for _ in range(size)]
    # A long way through most clerks, which ends in a circle somewhere on it.
    length = rng.randint(size - 1, size)
    for index in range(length - 1):
        passes_to[way[index]] = way[index + 1]
    passes_to[way[length - 1]] = way[rng.randrange(length)]
    return {
        "passes_to": passes_to,
        "stamps": [rng.randint(0, 9) for _ in range(size)],
        "start": way[rng.choice([0, 0, 0, 1])],
        "moves": rng.choice(
            [rng.randint(0, size), *[rng.randint(size, 12 * size)] * 2, 100 * size]
        ),
    }


TESTS = [
    ({"passes_to": [1, 2, 0], "stamps": [1, 2, 4], "start": 0, "moves": 4}, 10),
    ({"passes_to": [1, 2, 3, 2], "stamps": [5, 1, 0, 7], "start": 0, "moves": 11}, 41),
    ({"passes_to": [0, 0], "stamps": [3, 8], "start": 1, "moves": 100}, 308),
    ({"passes_to": [1, 0], "stamps": [6, 2], "start": 0, "moves": 0}, 6),
    ({"passes_to": [2, 0, 1, 3], "stamps": [1, 1, 1, 9], "start": 2, "moves": 2}, 3),
]
