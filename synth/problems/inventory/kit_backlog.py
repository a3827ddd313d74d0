"""A workshop builds kits from parts. `stock` says how many pieces of each part it has, and `recipes` how
many pieces of which parts each kit takes; every part of a recipe is listed in `stock`, and no kit has the
name of a part. `events` lists names in order, one per event. The name of a kit is an order for one such
kit: it is built at once if all its parts are there, even while older orders wait, and otherwise the
order waits. The name of a part is a delivery of `pack` pieces of it (at least 1): then the waiting orders
are gone through once, the oldest first, and each is built if all its parts are there at its turn. What is
built uses its parts up.
An order waits as many events as its kit is built after it: 0 if at once, 1 if at the next event. An order
that is never built counts as if it were built at the last event. Return how many events all orders
wait, added up.
"""

from random import Random
from typing import Any


def build(stock: dict[str, int], recipe: dict[str, int]) -> bool:
    """Take the parts of a kit, if all are there."""
    for part in recipe:
        if stock[part] < recipe[part]:
            return False
    for part in recipe:
        stock[part] -= recipe[part]
    return True


def solve(
    stock: dict[str, int], recipes: dict[str, dict[str, int]], pack: int, events: list[str]
) -> int:
    """Events that orders wait."""
    left = dict(stock)
    waiting: list[int] = []
    waited = 0
    for now in range(len(events)):
        name = events[now]
        if name in recipes:
            if not build(left, recipes[name]):
                waiting.append(now)
            continue
        left[name] += pack
        still: list[int] = []
        for placed in waiting:
            if build(left, recipes[events[placed]]):
                waited += now - placed
            else:
                still.append(placed)
        waiting = still
    for placed in waiting:
        waited += len(events) - 1 - placed
    return waited


def solve_by_queue_length(
    stock: dict[str, int], recipes: dict[str, dict[str, int]], pack: int, events: list[str]
) -> int:
    """Every order in the queue after an event waits for one more event."""
    got = dict(stock)
    used = dict.fromkeys(stock, 0)
    queue: list[str] = []
    lengths: list[int] = []
    for name in events:
        if name in recipes:
            turn = [name]
        else:
            got[name] += pack
            turn, queue = queue, []
        for kit in turn:
            if all(used[part] + need <= got[part] for part, need in recipes[kit].items()):
                for part, need in recipes[kit].items():
                    used[part] += need
            else:
                queue.append(kit)
        lengths.append(len(queue))
    return sum(lengths[:-1])


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Kits that share parts, of which too few are there at first."""
    parts = ["axle", "bolt", "frame"]
    kits = ["cart", "sled", "stool"][: rng.randint(2, 3)]
    recipes = {
        kit: {part: rng.randint(1, 3) for part in rng.sample(parts, rng.randint(1, 3))}
        for kit in kits
    }
    count = rng.randint(7 * (level + 1), 9 * (level + 1))
    events = [rng.choice(kits) if rng.random() < 0.55 else rng.choice(parts) for _ in range(count)]
    stock = {part: rng.randint(0, 3) for part in parts}
    return {"stock": stock, "recipes": recipes, "pack": rng.randint(1, 4), "events": events}


TESTS = [
    (
        {
            "stock": {"bulb": 1, "wire": 2},
            "recipes": {"lamp": {"bulb": 1, "wire": 2}},
            "pack": 1,
            "events": ["lamp"],
        },
        0,
    ),
    (
        {
            "stock": {"bulb": 1, "wire": 0},
            "recipes": {"lamp": {"bulb": 1, "wire": 2}},
            "pack": 2,
            "events": ["lamp", "wire"],
        },
        1,
    ),
    (
        {
            "stock": {"bulb": 0, "wire": 0},
            "recipes": {"lamp": {"bulb": 1, "wire": 2}},
            "pack": 1,
            "events": ["lamp", "lamp", "bulb"],
        },
        3,
    ),
    (
        {
            "stock": {"bulb": 0, "wire": 1},
            "recipes": {"lamp": {"bulb": 1, "wire": 2}, "plug": {"wire": 1}},
            "pack": 2,
            "events": ["lamp", "plug", "wire", "bulb", "plug"],
        },
        3,
    ),
    (
        {
            "stock": {"wire": 0},
            "recipes": {"plug": {"wire": 1}, "cord": {"wire": 2}},
            "pack": 3,
            "events": ["cord", "plug", "plug", "wire", "plug"],
        },
        7,
    ),
]
