"""A quilt is sewn from square pieces in rows and columns. `quilt` gives row by row what each piece
is worth; a stained piece is worth less than nothing. A tailor cuts out one patch along the seams,
`tall` rows high and `wide` columns wide, which fits into the quilt in one way at least and is not
turned. The worth of a patch is that of its pieces together. Answer three numbers in this order: the
row and the column of the upper left piece of the patch with the greatest worth, both counted from
0, and its worth. Of patches with equal worth, take the one that begins in the uppermost row, and of
several in that row the leftmost.
"""

from random import Random
from typing import Any


def sums_from_corner(quilt: list[list[int]]) -> list[list[int]]:
    """The worth of all pieces above and left of each seam crossing."""
    table = [[0] * (len(quilt[0]) + 1)]
    for line in quilt:
        above = table[-1]
        sums = [0]
        running = 0
        for column, worth in enumerate(line):
            running += worth
            sums.append(above[column + 1] + running)
        table.append(sums)
    return table


def solve(quilt: list[list[int]], tall: int, wide: int) -> list[int]:
    """Row, column and worth of the best patch."""
    table = sums_from_corner(quilt)
    best: list[int] = []
    for row in range(len(quilt) - tall + 1):
        upper, lower = table[row], table[row + tall]
        for column in range(len(quilt[0]) - wide + 1):
            end = column + wide
            worth = lower[end] - lower[column] - upper[end] + upper[column]
            if not best or worth > best[2]:
                best = [row, column, worth]
    return best


def solve_by_adding_up(quilt: list[list[int]], tall: int, wide: int) -> list[int]:
    """Add up the pieces of each patch, from the last patch to the first."""
    row, column = len(quilt) - tall, len(quilt[0]) - wide
    best = [row, column, sum(sum(line[column:]) for line in quilt[row:])]
    for r in range(row, -1, -1):
        for c in range(column, -1, -1):
            worth = sum(sum(line[c : c + wide]) for line in quilt[r : r + tall])
            if worth >= best[2]:
                best = [r, c, worth]
    return best


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Small worths, so that two patches are equal at times."""
    rows, columns = rng.randint(2, 3) + level, rng.randint(3, 4) + level
    quilt = [[rng.randint(-4, 9) for _ in range(columns)] for _ in range(rows)]
    tall = rng.randint(1, 2) if rng.random() < 0.8 else rows
    return {"quilt": quilt, "tall": tall, "wide": rng.randint(2, 2 + level)}


TESTS = [
    ({"quilt": [[1, 2, 3], [4, 5, 6], [7, 8, -9]], "tall": 2, "wide": 2}, [1, 0, 24]),
    ({"quilt": [[-3, -1], [-1, -2]], "tall": 1, "wide": 1}, [0, 1, -1]),
    ({"quilt": [[2, -5], [0, 4]], "tall": 2, "wide": 2}, [0, 0, 1]),
    ({"quilt": [[1, 1, 1, 1]], "tall": 1, "wide": 3}, [0, 0, 3]),
    ({"quilt": [[0, 5], [5, 0], [1, 4]], "tall": 1, "wide": 2}, [0, 0, 5]),
]
