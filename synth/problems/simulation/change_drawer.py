"""A kiosk gives change from a drawer that holds pieces worth 20, 10, 5, 2 and 1. `drawer` says how many
of each it holds at first, in that order. Customers come in order: customer number i wants something that
costs `prices[i]` (at least 1) and lays down one piece worth `paid[i]`, which is one of the five values.
If the piece is worth less than the price, the sale is refused. Otherwise the change is made up from the
most valuable pieces down: of each value the clerk takes as many pieces from the drawer as fit into what
is still due, or all of that value if there are fewer. If something is still due after the ones, the sale
is refused, the pieces go back into the drawer, and the customer takes the piece back. Otherwise the
change is handed out and the customer's piece stays in the drawer for later customers.
Return how many pieces are handed out as change in all.
"""

from collections import Counter
from random import Random
from typing import Any

VALUES = [20, 10, 5, 2, 1]


def make_change(held: list[int], due: int) -> list[int]:
    """Pieces of each value that make up what is due; empty if that cannot be done."""
    taken = [0] * len(VALUES)
    for k in range(len(VALUES)):
        taken[k] = min(held[k], due // VALUES[k])
        due -= taken[k] * VALUES[k]
    return taken if due == 0 else []


def solve(drawer: list[int], prices: list[int], paid: list[int]) -> int:
    """Pieces handed out as change."""
    held = list(drawer)
    handed = 0
    for i in range(len(prices)):
        if paid[i] < prices[i]:
            continue
        taken = make_change(held, paid[i] - prices[i])
        if not taken:
            continue
        for k in range(len(VALUES)):
            held[k] -= taken[k]
        held[VALUES.index(paid[i])] += 1
        handed += sum(taken)
    return handed


def solve_by_pieces(drawer: list[int], prices: list[int], paid: list[int]) -> int:
    """Take single pieces out of a bag, the most valuable first."""
    bag = [value for value, count in zip(VALUES, drawer, strict=True) for _ in range(count)]
    handed = 0
    for price, piece in zip(prices, paid, strict=True):
        due = piece - price
        change: Counter[int] = Counter()
        for value in sorted(bag, reverse=True):
            if value <= due:
                due -= value
                change[value] += 1
        if due == 0:
            for value in change.elements():
                bag.remove(value)
            bag.append(piece)
            handed += change.total()
    return handed


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A drawer that is short of some values, and customers of whom some cannot pay."""
    customers = rng.randint(5 * (level + 1), 8 * (level + 1))
    drawer = [rng.randint(0, 1), rng.randint(0, 2), rng.randint(0, 2), rng.randint(0, 4)]
    drawer.append(rng.randint(0, 4))
    paid = [rng.choice([20, 20, 10, 10, 5, 2]) for _ in range(customers)]
    prices = []
    for piece in paid:
        dearer = rng.random() < 0.1
        prices.append(piece + rng.randint(1, 3) if dearer else rng.randint(1, piece))
    return {"drawer": drawer, "prices": prices, "paid": paid}


TESTS = [
    ({"drawer": [0, 0, 0, 0, 0], "prices": [5], "paid": [5]}, 0),
    ({"drawer": [0, 0, 1, 2, 1], "prices": [3, 4], "paid": [10, 5]}, 3),
    ({"drawer": [0, 0, 1, 3, 0], "prices": [4, 3], "paid": [10, 5]}, 1),
    ({"drawer": [0, 1, 0, 0, 1], "prices": [8, 9], "paid": [5, 20]}, 2),
    ({"drawer": [0, 0, 0, 0, 0], "prices": [5, 5, 1, 15], "paid": [5, 10, 2, 20]}, 1),
]
