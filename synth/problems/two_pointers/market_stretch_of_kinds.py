"""Along a market street stand stalls, at least one, in a row. The list `kinds` tells for each stall
which kind of fruit it sells, as a word, and the list `weights`, equally long, how many kilos of it,
at least 1. A buyer starts at some stall and walks on from stall to neighbouring stall in the order
of the lists, buying all the fruit of every stall passed, none left out, and stops after any stall.
The baskets hold at most `most` different kinds, at least 1, but any weight. How many kilos can be
bought at most?"""

from random import Random
from typing import Any


def solve(kinds: list[str], weights: list[int], most: int) -> int:
    """Largest weight of neighbouring stalls with at most `most` kinds."""
    num_of: dict[str, int] = {}
    first = 0
    weight = 0
    best = 0
    for stall, kind in enumerate(kinds):
        num_of[kind] = num_of.get(kind, 0) + 1
        weight += weights[stall]
        while len(num_of) > most:
            left = kinds[first]
            num_of[left] -= 1
            if num_of[left] == 0:
                del num_of[left]
            weight -= weights[first]
            first += 1
        best = max(best, weight)
    return best


def solve_by_starts(kinds: list[str], weights: list[int], most: int) -> int:
    """Walk on as far as possible from each stall."""
    best = 0
    for start in range(len(kinds)):
        bought: set[str] = set()
        weight = 0
        for kind, kilos in zip(kinds[start:], weights[start:], strict=True):
            bought.add(kind)
            if len(bought) > most:
                break
            weight += kilos
        best = max(best, weight)
    return best


def generate(rng: Random, level: int) -> dict[str, Any]:
    """More kinds than fit into the baskets, most of the time."""
    size = rng.randint(6, 9) + 6 * level
    names = rng.sample(["apple", "cherry", "fig", "grape", "lemon", "pear", "plum"], 4 + level % 3)
    return {
        "kinds": [rng.choice(names) for _ in range(size)],
        "weights": [rng.randint(1, 30) for _ in range(size)],
        "most": rng.randint(1, 3),
    }


TESTS = [
    ({"kinds": ["fig", "plum", "fig", "pear"], "weights": [2, 3, 4, 9], "most": 2}, 13),
    ({"kinds": ["fig"], "weights": [5], "most": 1}, 5),
    ({"kinds": ["fig", "plum", "plum"], "weights": [8, 3, 4], "most": 1}, 8),
    ({"kinds": ["fig", "plum", "pear"], "weights": [1, 2, 3], "most": 5}, 6),
    ({"kinds": ["a", "b", "a", "c", "c"], "weights": [5, 5, 5, 1, 8], "most": 2}, 15),
]
