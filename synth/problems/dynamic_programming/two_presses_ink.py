"""A printer has two presses, an old one and a new one, and prints a series of sheets in the given
order, one after another, each on one of the presses. `old_costs` and `new_costs` give for each
sheet what it costs on the old and on the new press; there is at least one sheet. The first sheet
may be printed on either. When a sheet is to be printed on another press than the sheet before it,
carrying the forms over to the new press costs `to_new`, and carrying them over to the old press
costs `to_old`. What does the whole series cost at least?
"""

from random import Random
from typing import Any


def solve(old_costs: list[int], new_costs: list[int], to_new: int, to_old: int) -> int:
    """The least cost of the whole series."""
    on_old, on_new = old_costs[0], new_costs[0]
    for sheet in range(1, len(old_costs)):
        reach_old = min(on_old, on_new + to_old)
        reach_new = min(on_new, on_old + to_new)
        on_old = reach_old + old_costs[sheet]
        on_new = reach_new + new_costs[sheet]
    return min(on_old, on_new)


def solve_by_runs(old_costs: list[int], new_costs: list[int], to_new: int, to_old: int) -> int:
    """The least cost of the sheets from each one on, by how many stay on one press."""
    costs = (old_costs, new_costs)
    fees = (to_new, to_old)
    size = len(old_costs)
    rest = [[0, 0] for _ in range(size + 1)]
    for begin in range(size - 1, -1, -1):
        for press in (0, 1):
            spent = 0
            options = []
            for end in range(begin + 1, size + 1):
                spent += costs[press][end - 1]
                # The fee is due only where sheets are left for the other press.
                onward = rest[end][1 - press] + fees[press] if end < size else 0
                options.append(spent + onward)
            rest[begin][press] = min(options)
    return min(rest[0])


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Fees about as high as the differences between the presses."""
    size = rng.randint(5, 9) + 6 * level
    return {
        "old_costs": [rng.randint(1, 20) for _ in range(size)],
        "new_costs": [rng.randint(1, 20) for _ in range(size)],
        "to_new": rng.randint(0, 9),
        "to_old": rng.randint(0, 9),
    }


TESTS = [
    ({"old_costs": [1, 9, 9], "new_costs": [9, 2, 2], "to_new": 3, "to_old": 1}, 8),
    ({"old_costs": [4], "new_costs": [6], "to_new": 1, "to_old": 1}, 4),
    ({"old_costs": [5, 1, 5], "new_costs": [1, 5, 1], "to_new": 2, "to_old": 1}, 6),
    ({"old_costs": [5, 1, 5], "new_costs": [1, 5, 1], "to_new": 0, "to_old": 0}, 3),
    ({"old_costs": [9, 1, 9], "new_costs": [1, 7, 1], "to_new": 5, "to_old": 5}, 9),
]
