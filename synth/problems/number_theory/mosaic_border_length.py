"""A workshop lays square tiles of one foot each. `orders` gives for each customer, by name, the
number of tiles ordered, at least 1. Each order becomes one full rectangle in which all its tiles
lie, without gaps, and its two sides differ in length by as little as is possible. A border is put
around each rectangle, as long as the way around it. How many feet of border are needed for all
orders together?
"""

from random import Random
from typing import Any


def shorter_side(tiles: int) -> int:
    """The greatest divisor not above the square root."""
    side = 1
    candidate = 2
    while candidate * candidate <= tiles:
        if tiles % candidate == 0:
            side = candidate
        candidate += 1
    return side


def solve(orders: dict[str, int]) -> int:
    """The feet of border for all orders."""
    feet = 0
    for tiles in orders.values():
        side = shorter_side(tiles)
        feet += 2 * (side + tiles // side)
    return feet


def solve_by_all_rectangles(orders: dict[str, int]) -> int:
    """Try each length of one side."""
    feet = 0
    for tiles in orders.values():
        ways = [(side, tiles // side) for side in range(1, tiles + 1) if tiles % side == 0]
        one, other = min(ways, key=lambda sides: abs(sides[0] - sides[1]))
        feet += 2 * one + 2 * other
    return feet


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Squares, primes and what lies between."""
    names = [
        "Ada",
        "Bruno",
        "Clara",
        "Dario",
        "Elsa",
        "Fabio",
        "Greta",
        "Hugo",
        "Irma",
        "Jonas",
        "Karla",
        "Leo",
    ]
    orders: dict[str, int] = {}
    for name in rng.sample(names, rng.randint(2, 4) + level):
        tiles = rng.randint(1, 40 + 40 * level)
        if rng.random() < 0.2:
            tiles = rng.randint(2, 6 + level) ** 2
        orders[name] = tiles
    return {"orders": orders}


TESTS = [
    ({"orders": {"Ada": 12}}, 14),
    ({"orders": {"Bruno": 1}}, 4),
    ({"orders": {"Leo": 25, "Clara": 13}}, 48),
    ({"orders": {"Hugo": 36, "Irma": 18, "Elsa": 2}}, 48),
    ({"orders": {"Dario": 30, "Karla": 30}}, 44),
]
