"""An optician builds telescopes from one lens and one mirror each. The list `lenses` holds the prices
of the lenses and the list `mirrors` those of the mirrors, both in ascending order, with at least one
price each; equal prices may occur. A customer names the sum `budget`. Choose one lens and one mirror
whose prices together come as close to `budget` as possible, whether below or above; if a sum below
and one above are equally close, take the one below. What do the two cost together?"""

from random import Random
from typing import Any


def is_better(cost: int, best: int, budget: int) -> bool:
    """Whether a sum is closer to the budget than the best one, or as close and lower."""
    distance = abs(cost - budget)
    best_distance = abs(best - budget)
    return distance < best_distance or (distance == best_distance and cost < best)


def solve(lenses: list[int], mirrors: list[int], budget: int) -> int:
    """The sum closest to the budget, the lower one of two."""
    lens = 0
    mirror = len(mirrors) - 1
    best = lenses[lens] + mirrors[mirror]
    while lens < len(lenses) and mirror >= 0:
        cost = lenses[lens] + mirrors[mirror]
        if is_better(cost, best, budget):
            best = cost
        if cost > budget:
            mirror -= 1
        else:
            lens += 1
    return best


def solve_by_pairs(lenses: list[int], mirrors: list[int], budget: int) -> int:
    """Add each lens to each mirror."""
    sums = [lens + mirror for lens in lenses for mirror in mirrors]
    return min(sums, key=lambda cost: (abs(cost - budget), cost))


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Budgets from below the cheapest to above the dearest pair."""
    num_lenses = rng.randint(4, 6) + 4 * level
    num_mirrors = rng.randint(4, 6) + 4 * level
    lenses = sorted(rng.randint(10, 90) for _ in range(num_lenses))
    mirrors = sorted(rng.randint(10, 90) for _ in range(num_mirrors))
    least, most = lenses[0] + mirrors[0], lenses[-1] + mirrors[-1]
    return {"lenses": lenses, "mirrors": mirrors, "budget": rng.randint(least - 5, most + 5)}


TESTS = [
    ({"lenses": [10, 25], "mirrors": [7, 30], "budget": 36}, 32),
    ({"lenses": [10, 20], "mirrors": [10, 20], "budget": 25}, 20),
    ({"lenses": [5], "mirrors": [6], "budget": 100}, 11),
    ({"lenses": [4, 9], "mirrors": [8], "budget": 1}, 12),
    ({"lenses": [3, 14, 40], "mirrors": [5, 11, 26], "budget": 30}, 29),
]
