"""An orchard lies on a slope and is divided into square plots in rows and columns. `heights` gives
row by row how high each plot lies, `fruit` in the same shape how many baskets of fruit it bears. A
picker with a ladder starts on the first plot of the first row and may step from a plot to one that
shares a side with it, any number of times, as long as their heights differ by no more than
`ladder`. How many baskets can the picker bring in from all plots that can be got to, the first plot
included?
"""

from random import Random
from typing import Any


def solve(heights: list[list[int]], fruit: list[list[int]], ladder: int) -> int:
    """The baskets of all plots that can be got to."""
    rows, columns = len(heights), len(heights[0])
    seen = [[False] * columns for _ in range(rows)]
    seen[0][0] = True
    stack = [(0, 0)]
    baskets = 0
    while stack:
        row, column = stack.pop()
        baskets += fruit[row][column]
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            r, c = row + down, column + right
            if not (0 <= r < rows and 0 <= c < columns) or seen[r][c]:
                continue
            if abs(heights[r][c] - heights[row][column]) <= ladder:
                seen[r][c] = True
                stack.append((r, c))
    return baskets


def solve_by_sweeping(heights: list[list[int]], fruit: list[list[int]], ladder: int) -> int:
    """Look at all neighbouring pairs until no plot is added."""
    reached = {(0, 0)}
    before = 0
    while len(reached) > before:
        before = len(reached)
        for row, line in enumerate(heights):
            for column, height in enumerate(line):
                for other in ((row + 1, column), (row, column + 1)):
                    if other[0] == len(heights) or other[1] == len(line):
                        continue
                    is_step = abs(heights[other[0]][other[1]] - height) <= ladder
                    if is_step and ((row, column) in reached or other in reached):
                        reached |= {(row, column), other}
    return sum(fruit[row][column] for row, column in reached)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Slopes on which, mostly, some plots can be got to and some cannot."""
    rows, columns = rng.randint(2, 3) + level, 3 + level
    ladder = rng.randint(1, 4)
    # A step fails now and then: the highest plot can be well over two ladders above the lowest.
    heights = [[rng.randint(1, 1 + 5 * ladder // 2) for _ in range(columns)] for _ in range(rows)]
    fruit = [[rng.randint(0, 12) for _ in range(columns)] for _ in range(rows)]
    return {"heights": heights, "fruit": fruit, "ladder": ladder}


TESTS = [
    (
        {"heights": [[1, 2, 9], [5, 3, 9]], "fruit": [[1, 2, 50], [4, 8, 60]], "ladder": 2},
        15,
    ),
    ({"heights": [[7]], "fruit": [[3]], "ladder": 0}, 3),
    ({"heights": [[1, 5], [5, 1]], "fruit": [[2, 9], [9, 9]], "ladder": 3}, 2),
    (
        {
            "heights": [[0, 9, 0], [0, 9, 0], [0, 0, 0]],
            "fruit": [[1, 10, 1], [1, 10, 1], [1, 1, 1]],
            "ladder": 0,
        },
        7,
    ),
    ({"heights": [[4, 3, 1, 2]], "fruit": [[5, 6, 7, 8]], "ladder": 1}, 11),
]
