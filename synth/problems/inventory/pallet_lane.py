"""Pallets stand one behind the other in a lane that has a door at one end only and room for `depth`
pallets (at least 1). The lane is empty at first. Jobs come in order: job number i is of kind `kinds[i]`
("store" or "fetch") and is about the product with the name `products[i]`. To store, a pallet with that
product is put in front of all others, nearest to the door; this is one move, and it is refused if the
lane is full. To fetch, of the pallets with that product the one nearest to the door is taken away: each
pallet in front of it is moved out first and, once it is gone, moved in again, in the old order. Moving a
pallet out is one move, moving it in is one, and taking the wanted pallet away is one. If no pallet in
the lane has the product, the job is refused. Refused jobs take no move.
Return the number of moves in all.
"""

from random import Random
from typing import Any


def solve(depth: int, kinds: list[str], products: list[str]) -> int:
    """Moves of pallets."""
    lane: list[str] = []
    moves = 0
    for i in range(len(kinds)):
        product = products[i]
        if kinds[i] == "store":
            if len(lane) < depth:
                lane.append(product)
                moves += 1
        elif product in lane:
            aside: list[str] = []
            while lane[-1] != product:
                aside.append(lane.pop())
                moves += 1
            lane.pop()
            moves += 1
            while aside:
                lane.append(aside.pop())
                moves += 1
    return moves


def solve_by_arrival(depth: int, kinds: list[str], products: list[str]) -> int:
    """Remember in which job each pallet came: later ones stand in front."""
    inside: dict[int, str] = {}
    moves = 0
    for job, (kind, product) in enumerate(zip(kinds, products, strict=True)):
        if kind == "store":
            if len(inside) != depth:
                inside[job] = product
                moves += 1
            continue
        same = [came for came, held in inside.items() if held == product]
        if same:
            newest = max(same)
            in_front = sum(1 for came in inside if came > newest)
            del inside[newest]
            moves += 2 * in_front + 1
    return moves


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A lane that fills up now and then, with few products."""
    count = rng.randint(7 * (level + 1), 10 * (level + 1))
    names = ["oats", "rye", "salt", "tea", "figs"][: rng.randint(3, 5)]
    store = rng.uniform(0.5, 0.65)
    kinds = ["store" if rng.random() < store else "fetch" for _ in range(count)]
    kinds[:2] = ["store", "store"]
    return {
        "depth": rng.randint(3, 5) + level,
        "kinds": kinds,
        "products": [rng.choice(names) for _ in range(count)],
    }


TESTS = [
    ({"depth": 3, "kinds": ["store", "store", "fetch"], "products": ["a", "b", "a"]}, 5),
    ({"depth": 2, "kinds": ["fetch"], "products": ["x"]}, 0),
    (
        {
            "depth": 1,
            "kinds": ["store", "store", "fetch", "fetch"],
            "products": ["a", "b", "b", "a"],
        },
        2,
    ),
    (
        {
            "depth": 4,
            "kinds": ["store", "store", "store", "store", "fetch", "fetch"],
            "products": ["a", "b", "a", "c", "a", "a"],
        },
        12,
    ),
    (
        {
            "depth": 2,
            "kinds": ["store", "fetch", "fetch", "store", "store", "fetch"],
            "products": ["a", "a", "a", "b", "a", "b"],
        },
        7,
    ),
]
