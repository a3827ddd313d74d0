"""A hillside is divided into square plots in rows and columns. `heights` gives row by row how high
each plot lies, no two of them equally high, and `rain` in the same shape how many buckets of rain
fall on it. All water of a plot, what fell there and what comes from elsewhere, runs to the lowest
of the plots that share a side with it, provided that that one lies lower than the plot itself;
otherwise it stays and forms a pond. None runs off the hillside or seeps away. How many buckets are
in the pond that has most?
"""

from random import Random
from typing import Any


def pond_of(heights: list[list[int]], row: int, column: int) -> tuple[int, int]:
    """Where the water of a plot comes to rest."""
    lowest = (row, column)
    for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if not (0 <= r < len(heights) and 0 <= c < len(heights[0])):
            continue
        if heights[r][c] < heights[lowest[0]][lowest[1]]:
            lowest = (r, c)
    if lowest == (row, column):
        return lowest
    return pond_of(heights, lowest[0], lowest[1])


def solve(heights: list[list[int]], rain: list[list[int]]) -> int:
    """The buckets in the fullest pond."""
    ponds: dict[tuple[int, int], int] = {}
    fullest = 0
    for row in range(len(heights)):
        for column in range(len(heights[0])):
            pond = pond_of(heights, row, column)
            ponds[pond] = ponds.get(pond, 0) + rain[row][column]
            fullest = max(fullest, ponds[pond])
    return fullest


def solve_from_the_top(heights: list[list[int]], rain: list[list[int]]) -> int:
    """Hand the water down from the highest plot to the lowest."""
    level = {
        (row, column): height
        for row, line in enumerate(heights)
        for column, height in enumerate(line)
    }
    water = {place: rain[place[0]][place[1]] for place in level}
    fullest = 0
    for row, column in sorted(level, key=lambda place: -level[place]):
        beside = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        lower = [
            (level[place], place)
            for place in beside
            if place in level and level[place] < level[row, column]
        ]
        if lower:
            water[min(lower)[1]] += water[row, column]
        else:
            fullest = max(fullest, water[row, column])
    return fullest


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Heights at random: a few ponds per hillside, at times just one."""
    rows, columns = 2 + level, rng.randint(3, 4) + level
    pool = rng.sample(range(1, 100 + 50 * level), rows * columns)
    heights = [pool[row * columns : (row + 1) * columns] for row in range(rows)]
    rain = [[rng.randint(0, 15) for _ in range(columns)] for _ in range(rows)]
    return {"heights": heights, "rain": rain}


TESTS = [
    ({"heights": [[5, 3, 4, 1]], "rain": [[1, 2, 4, 8]]}, 12),
    ({"heights": [[1, 2], [3, 4]], "rain": [[1, 1], [1, 1]]}, 4),
    ({"heights": [[9]], "rain": [[0]]}, 0),
    ({"heights": [[6, 5, 1], [7, 8, 9], [2, 4, 3]], "rain": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}, 24),
    ({"heights": [[2, 9, 1]], "rain": [[6, 4, 1]]}, 6),
]
