"""A warehouse holds `stock` units of one good, all free at first, and keeps units back for orders. Events
come in order: event number i is of kind `kinds[i]`, for the order with number `orders[i]` and with
`units[i]` units (at least 1). "reserve" keeps that many more units back for the order; it is refused if
fewer units are free, or if the order would then have more than `cap` units kept back. "ship" sends that
many of the units kept back for the order to the customer, or all of them if there are fewer; they leave
the warehouse for good. "release" makes that many of the units kept back for the order free again, or all
of them if there are fewer. An order that was shipped or released may reserve again.
After every event, also a refused one, the warehouse charges 1 cent for each unit that is kept back at
that moment, over all orders. Return the charges in cents in all.
"""

from random import Random
from typing import Any


def solve(stock: int, cap: int, kinds: list[str], orders: list[int], units: list[int]) -> int:
    """What keeping back costs."""
    free = stock
    kept: dict[int, int] = {}
    charges = 0
    for i in range(len(kinds)):
        order = orders[i]
        have = kept.get(order, 0)
        if kinds[i] == "reserve":
            if units[i] <= free and have + units[i] <= cap:
                kept[order] = have + units[i]
                free -= units[i]
        else:
            moved = min(units[i], have)
            kept[order] = have - moved
            if kinds[i] == "release":
                free += moved
        charges += sum(kept.values())
    return charges


def solve_by_changes(
    stock: int, cap: int, kinds: list[str], orders: list[int], units: list[int]
) -> int:
    """A change of what is kept back is paid for once for each event from it to the end."""
    log: list[list[int]] = []
    shipped = 0
    charges = 0
    for i, (kind, order, wanted) in enumerate(zip(kinds, orders, units, strict=True)):
        own = sum(change for who, change in log if who == order)
        everyone = sum(change for _, change in log)
        if kind == "reserve":
            fits = everyone + wanted <= stock - shipped and own + wanted <= cap
            change = wanted if fits else 0
        else:
            change = -min(own, wanted)
            if kind == "ship":
                shipped -= change
        log.append([order, change])
        charges += change * (len(kinds) - i)
    return charges


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Few orders, which come up again and again."""
    count = rng.randint(6 * (level + 1), 9 * (level + 1))
    kinds = [rng.choice(["reserve", "reserve", "ship", "release"]) for _ in range(count)]
    kinds[0] = "reserve"
    return {
        "stock": rng.randint(7, 12) + 5 * level,
        "cap": rng.randint(4, 7),
        "kinds": kinds,
        "orders": [rng.randint(1, 3 + level) for _ in range(count)],
        "units": [rng.randint(1, 4) for _ in range(count)],
    }


TESTS = [
    ({"stock": 5, "cap": 4, "kinds": ["reserve"], "orders": [1], "units": [3]}, 3),
    (
        {
            "stock": 5,
            "cap": 4,
            "kinds": ["reserve", "reserve", "ship", "release"],
            "orders": [1, 2, 1, 1],
            "units": [3, 3, 2, 5],
        },
        7,
    ),
    (
        {
            "stock": 9,
            "cap": 4,
            "kinds": ["reserve", "reserve", "reserve"],
            "orders": [7, 7, 7],
            "units": [3, 2, 1],
        },
        10,
    ),
    (
        {
            "stock": 4,
            "cap": 4,
            "kinds": ["ship", "release", "reserve", "ship", "reserve"],
            "orders": [1, 2, 1, 1, 2],
            "units": [2, 1, 4, 4, 1],
        },
        4,
    ),
    (
        {
            "stock": 3,
            "cap": 3,
            "kinds": ["reserve", "release", "reserve"],
            "orders": [1, 1, 2],
            "units": [3, 2, 2],
        },
        7,
    ),
]
