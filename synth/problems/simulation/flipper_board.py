"""Marbles fall one after the other, each all the way down, through a board with `rows` rows of flippers
(at least 1): the top row has one flipper, the next two, and so on, and below the last row there is one
bin more than that row has flippers. Flippers and bins are counted in each row from the left, from 0. At
first all flippers point to the left. A marble starts at the only flipper of the top row. At a flipper
with number p it goes where that points: left, to number p of the row below (or bin p), or right, to
number p + 1. Behind the marble the flipper turns over to point to the other side, but a marble with a
weight of at least `heavy` is too heavy for the spring: the flipper stays as it was. `marbles` lists the
weights of the marbles (at least 1) in the order in which they are dropped.
A marble scores its weight times the number of its bin. Return the sum of the scores.
"""

from random import Random
from typing import Any


def solve(marbles: list[int], rows: int, heavy: int) -> int:
    """Sum of weight times bin."""
    points_right = [[False] * (row + 1) for row in range(rows)]
    score = 0
    for weight in marbles:
        place = 0
        for row in range(rows):
            goes_right = points_right[row][place]
            if weight < heavy:
                points_right[row][place] = not goes_right
            if goes_right:
                place += 1
        score += weight * place
    return score


def solve_by_rows(marbles: list[int], rows: int, heavy: int) -> int:
    """Send all marbles through a row before going to the next: each flipper keeps their order."""
    numbered = [list(range(len(marbles)))]
    for _ in range(rows):
        below: list[list[int]] = [[] for _ in range(len(numbered) + 1)]
        for p, stream in enumerate(numbered):
            light_before = 0
            for marble in stream:
                below[p + light_before % 2].append(marble)
                light_before += marbles[marble] < heavy
        numbered = [sorted(stream) for stream in below]
    return sum(p * marbles[marble] for p, stream in enumerate(numbered) for marble in stream)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A few marbles, about one in four of them heavy."""
    count = rng.randint(3, 4) + 2 * level
    return {
        "marbles": [rng.randint(1, 12) for _ in range(count)],
        "rows": rng.randint(2, 3) + level // 2,
        "heavy": rng.randint(8, 11),
    }


TESTS = [
    ({"marbles": [3], "rows": 2, "heavy": 10}, 0),
    ({"marbles": [1, 1, 1], "rows": 1, "heavy": 5}, 1),
    ({"marbles": [2, 3, 4, 5], "rows": 2, "heavy": 9}, 17),
    ({"marbles": [2, 9, 1], "rows": 1, "heavy": 9}, 10),
    ({"marbles": [7, 7], "rows": 3, "heavy": 7}, 0),
]
