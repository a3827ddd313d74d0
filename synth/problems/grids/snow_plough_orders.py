"""A snow plough clears a yard of square cells. `yard` has one text per row, all equally long: a
digit is a cell's depth of snow, `#` a cell that is built over. The plough stands on the first cell
of the first row, which is never built over, and faces towards the end of that row; the snow on this
cell is cleared first of all. Then it follows `orders`, letter by letter: `L` and `R` turn it a
quarter to its left or right on the spot, `F` drives it one cell ahead, unless that cell is built
over or outside the yard, in which case it stays where it is. It clears all the snow of each cell it
comes to. Answer the sum of the depths that it has cleared.
"""

from random import Random
from typing import Any


def is_open(yard: list[str], row: int, column: int) -> bool:
    """Whether the plough can stand there."""
    if row < 0 or row >= len(yard) or column < 0 or column >= len(yard[row]):
        return False
    return yard[row][column] != "#"


def solve(yard: list[str], orders: str) -> int:
    """The depths of snow cleared, added up."""
    row = column = 0
    down, right = 0, 1
    cleared = {(0, 0)}
    total = int(yard[0][0])
    for order in orders:
        if order == "L":
            down, right = -right, down
        elif order == "R":
            down, right = right, -down
        elif is_open(yard, row + down, column + right):
            row += down
            column += right
            if (row, column) not in cleared:
                cleared.add((row, column))
                total += int(yard[row][column])
    return total


def solve_on_a_copy(yard: list[str], orders: str) -> int:
    """Take the snow away from a copy with a wall around, and compare what is left."""
    width = len(yard[0]) + 2
    cells = "#" * width + "".join(f"#{line}#" for line in yard) + "#" * width
    snow = [0 if cell == "#" else int(cell) for cell in cells]
    before = sum(snow)
    headings = [1, width, -1, -width]
    place, heading = width + 1, 0
    snow[place] = 0
    for order in orders:
        if order == "F":
            ahead = place + headings[heading]
            place = place if cells[ahead] == "#" else ahead
            snow[place] = 0
        else:
            heading = (heading + (1 if order == "R" else 3)) % 4
    return before - sum(snow)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """About half of the orders drive, so that walls, edges and cells come to before all occur."""
    rows, columns = rng.randint(3, 4) + level, rng.randint(3, 5) + level
    lines = ["".join(rng.choice("0123456789##") for _ in range(columns)) for _ in range(rows)]
    lines[0] = rng.choice("123456789") + lines[0][1:]
    orders = "".join(rng.choice("FFFFLRR") for _ in range(rng.randint(7, 10) + 7 * level))
    return {"yard": lines, "orders": orders}


TESTS = [
    ({"yard": ["123", "456"], "orders": "FRFRF"}, 12),
    ({"yard": ["1#", "23"], "orders": "FRFLF"}, 6),
    ({"yard": ["7"], "orders": "FLFLF"}, 7),
    ({"yard": ["59", "11"], "orders": "FRRFFRRF"}, 14),
    ({"yard": ["123", "#94"], "orders": ""}, 1),
    ({"yard": ["11", "82"], "orders": "LFRRF"}, 9),
]
