"""Stones lie in a row across a river. `mossy` is a text with one letter per stone, from this bank
to the other: `o` for a dry stone, `x` for a mossy one, which nobody may step on. Someone stands on
the bank just before the first stone and wants to get to the far bank just behind the last stone,
always ahead. `strides` lists the different distances, all at least 1, that a single hop may have: a
hop of distance 1 leads from the near bank to the first stone, from a stone to the next one, or from
the last stone to the far bank, a hop of distance 2 leads past one stone, and so on; no hop goes
beyond the far bank's place. In how many different ways can the river be crossed? Two ways differ if
they use different stones.
"""

from random import Random
from typing import Any


def solve(mossy: str, strides: list[int]) -> int:
    """The ways to hop across."""
    far_bank = len(mossy) + 1
    ways = [0] * (far_bank + 1)
    ways[0] = 1
    for place in range(1, far_bank + 1):
        if place < far_bank and mossy[place - 1] == "x":
            continue
        for stride in strides:
            if stride <= place:
                ways[place] += ways[place - stride]
    return ways[far_bank]


def solve_from_the_bank(mossy: str, strides: list[int]) -> int:
    """The ways from each place on, asked for from the near bank."""
    ground = "o" + mossy + "o"
    known: dict[int, int] = {}

    def ways_from(place: int) -> int:
        if place >= len(ground) or ground[place] == "x":
            return 0
        if place == len(ground) - 1:
            return 1
        if place not in known:
            known[place] = sum(ways_from(place + stride) for stride in strides)
        return known[place]

    return ways_from(0)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Few mossy stones, so that there are mostly many ways; at times the river cannot be crossed."""
    size = rng.randint(6, 8) + 4 * level
    mossy = "".join(rng.choice("ooooooox") for _ in range(size))
    strides = [*rng.sample([1, 2], rng.choice([1, 2, 2, 2])), rng.choice([3, 4, 5])]
    return {"mossy": mossy, "strides": rng.sample(strides, len(strides))}


TESTS = [
    ({"mossy": "ooo", "strides": [1, 2]}, 5),
    ({"mossy": "oxo", "strides": [2, 1]}, 1),
    ({"mossy": "xx", "strides": [1, 2]}, 0),
    ({"mossy": "oooo", "strides": [5]}, 1),
    ({"mossy": "oxoo", "strides": [3, 1, 4, 2]}, 7),
    ({"mossy": "ooo", "strides": [3]}, 0),
]
