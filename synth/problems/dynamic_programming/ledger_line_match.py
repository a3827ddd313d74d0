"""Two clerks kept the same ledger, and their lists of amounts, `mine` and `theirs`, are to be
brought in line. Any amount of either list may be struck out, at a price of `strike` each; what is
left of the two lists must then be equally long, and the first amount left in one is matched with
the first left in the other, the second with the second, and so on. Each such pair costs the
difference between its two amounts. What is the least total price? Either list may be empty, and all
amounts may be struck out.
"""

from random import Random
from typing import Any


def solve(mine: list[int], theirs: list[int], strike: int) -> int:
    """The least price of strikes and differences."""
    previous = [column * strike for column in range(len(theirs) + 1)]
    for amount in mine:
        current = [previous[0] + strike]
        for column, other in enumerate(theirs):
            matched = previous[column] + abs(amount - other)
            struck = min(previous[column + 1], current[column]) + strike
            current.append(min(matched, struck))
        previous = current
    return previous[-1]


def solve_by_recursion(mine: list[int], theirs: list[int], strike: int) -> int:
    """Strike or match the first amounts, and remember what the rest costs."""
    known: dict[tuple[int, int], int] = {}

    def price_from(row: int, column: int) -> int:
        if row == len(mine) or column == len(theirs):
            return (len(mine) - row + len(theirs) - column) * strike
        if (row, column) not in known:
            known[row, column] = min(
                abs(mine[row] - theirs[column]) + price_from(row + 1, column + 1),
                strike + price_from(row + 1, column),
                strike + price_from(row, column + 1),
            )
        return known[row, column]

    return price_from(0, 0)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """The second list is the first with some amounts changed, left out or put in."""
    size = rng.randint(2, 3) + 2 * level
    mine = [rng.randint(1, 60) for _ in range(size)]
    theirs: list[int] = []
    for amount in mine:
        fate = rng.random()
        if fate < 0.2:
            continue
        if fate < 0.4:
            theirs.append(rng.randint(1, 60))
        theirs.append(amount + rng.choice([0, -1, 2, 5, -9, 14]) if fate < 0.95 else 60)
    if rng.random() < 0.5:
        mine, theirs = theirs, mine
    return {"mine": mine, "theirs": theirs, "strike": rng.randint(3, 12)}


TESTS = [
    ({"mine": [10, 20, 30], "theirs": [10, 31], "strike": 5}, 6),
    ({"mine": [], "theirs": [4, 4], "strike": 3}, 6),
    ({"mine": [1], "theirs": [9], "strike": 3}, 6),
    ({"mine": [1], "theirs": [9], "strike": 5}, 8),
    ({"mine": [], "theirs": [], "strike": 7}, 0),
    ({"mine": [5, 8, 2], "theirs": [8, 2, 6], "strike": 2}, 4),
]
