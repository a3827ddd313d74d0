"""A shop starts with `start` units of a part and orders more from a factory. Each day goes like this.
In the morning the units arrive that were ordered exactly `lead` days before (at least 1). Then customers
want `demands[d]` units on day d; they get as many as there are, and units that are wanted but are not
there are lost sales. In the evening the shop adds up the units it has and those that are on their way:
if that is `point` or less, it orders as many units as are missing to `target` (which is more than
`point`). The costs of a day are 1 for each unit in the shop in the evening, 4 for each lost sale, and 10
if it orders.
Return the costs of all days.
"""

from random import Random
from typing import Any


def solve(start: int, demands: list[int], lead: int, point: int, target: int) -> int:
    """Costs of holding, losing and ordering."""
    stock = start
    arrivals = [0] * (len(demands) + lead)
    on_way = 0
    cost = 0
    for day in range(len(demands)):
        stock += arrivals[day]
        on_way -= arrivals[day]
        sold = min(stock, demands[day])
        stock -= sold
        cost += 4 * (demands[day] - sold) + stock
        if stock + on_way <= point:
            ordered = target - stock - on_way
            arrivals[day + lead] = ordered
            on_way += ordered
            cost += 10
    return cost


def solve_by_orders(start: int, demands: list[int], lead: int, point: int, target: int) -> int:
    """Keep the orders with their dates, and count each part of the costs on its own."""
    under_way: list[tuple[int, int]] = []
    stock = start
    lost = held = orders = 0
    for day, wanted in enumerate(demands):
        stock += sum(size for due, size in under_way if due == day)
        under_way = [(due, size) for due, size in under_way if due != day]
        stock -= wanted
        if stock < 0:
            lost, stock = lost - stock, 0
        held += stock
        position = stock + sum(size for _, size in under_way)
        if position <= point:
            under_way.append((day + lead, target - position))
            orders += 1
    return held + 4 * lost + 10 * orders


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Demand that is uneven enough to run out sometimes."""
    days = rng.randint(6 * (level + 1), 9 * (level + 1))
    point = rng.randint(1, 7)
    return {
        "start": rng.randint(2, 12),
        "demands": [rng.choice([0, 1, 2, 3, 4, 6]) for _ in range(days)],
        "lead": rng.randint(1, 3),
        "point": point,
        "target": point + rng.randint(2, 9),
    }


TESTS = [
    ({"start": 5, "demands": [3], "lead": 1, "point": 1, "target": 6}, 2),
    ({"start": 4, "demands": [5, 2], "lead": 1, "point": 1, "target": 5}, 17),
    ({"start": 2, "demands": [2, 1, 1, 1], "lead": 2, "point": 0, "target": 2}, 25),
    ({"start": 3, "demands": [0, 0, 0], "lead": 4, "point": 2, "target": 9}, 9),
    ({"start": 3, "demands": [1, 1], "lead": 1, "point": 5, "target": 6}, 27),
    ({"start": 3, "demands": [1, 1, 1, 1], "lead": 2, "point": 5, "target": 6}, 51),
]
