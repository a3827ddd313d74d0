"""A trader may buy one sack of grain on some day and sell it on a later day. The list `prices` holds
the price of a sack for each day, in order, at least one day. For every night that the sack lies in
the barn, `rent` has to be paid, 0 or more; a sack bought on one day and sold on the next lies there
one night. The trader buys and sells at most once. What is the largest gain, which is the price at
the sale less the price at the purchase less all rent? If no trade gains anything, the answer is
0."""

from random import Random
from typing import Any


def solve(prices: list[int], rent: int) -> int:
    """Largest gain of one purchase and one later sale."""
    cost = prices[0]
    best = 0
    for day in range(1, len(prices)):
        cost += rent
        gain = prices[day] - cost
        if gain > best:
            best = gain
        if prices[day] < cost:
            cost = prices[day]
    return best


def solve_by_pairs(prices: list[int], rent: int) -> int:
    """Try each pair of days."""
    best = 0
    for bought in range(len(prices)):
        for sold in range(bought + 1, len(prices)):
            best = max(best, prices[sold] - prices[bought] - rent * (sold - bought))
    return best


def generate(rng: Random, level: int) -> dict[str, Any]:
    """In a few cases prices only fall, so that nothing can be gained."""
    size = rng.randint(6, 9) + 6 * level
    prices = [rng.randint(10, 90) for _ in range(size)]
    if rng.random() < 0.05:
        prices.sort(reverse=True)
    return {"prices": prices, "rent": rng.randint(0, 9)}


TESTS = [
    ({"prices": [10, 14, 19], "rent": 2}, 5),
    ({"prices": [20, 15, 9], "rent": 0}, 0),
    ({"prices": [8], "rent": 3}, 0),
    ({"prices": [10, 30, 5, 20], "rent": 1}, 19),
    ({"prices": [10, 12, 14], "rent": 2}, 0),
    ({"prices": [6, 9, 11, 25, 3], "rent": 4}, 10),
]
