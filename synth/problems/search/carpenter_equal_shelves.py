"""A carpenter wants to saw `count` shelf boards of one common length, a whole number of centimetres,
from a stock of planks. The list `planks` holds the lengths of the planks in centimetres, each at
least 1; there is at least one plank, and `count` is at least 1. A board is one piece: planks are
never glued together. Between two boards from the same plank the saw turns `kerf` centimetres of the
plank into dust, 0 or more; before the first and after the last board of a plank nothing is lost,
and any rest of a plank may remain unused. What is the greatest length that the boards can have? If
not even boards of 1 centimetre are possible, the answer is 0."""

from random import Random
from typing import Any


def boards_from(plank: int, length: int, kerf: int) -> int:
    """How many boards of a length one plank gives."""
    return (plank + kerf) // (length + kerf)


def solve(planks: list[int], count: int, kerf: int) -> int:
    """Greatest common length of the boards, or 0."""
    possible = 0
    impossible = max(planks) + 1
    while impossible - possible > 1:
        length = (possible + impossible) // 2
        num_boards = 0
        for plank in planks:
            num_boards += boards_from(plank, length, kerf)
        if num_boards >= count:
            possible = length
        else:
            impossible = length
    return possible


def solve_by_sawing(planks: list[int], count: int, kerf: int) -> int:
    """Saw boards of each length, the greatest first."""
    for length in range(max(planks), 0, -1):
        num_boards = 0
        for plank in planks:
            rest = plank
            while rest >= length:
                num_boards += 1
                rest -= length + kerf
        if num_boards >= count:
            return length
    return 0


def generate(rng: Random, level: int) -> dict[str, Any]:
    """In a few cases there is too little wood for all boards."""
    planks = [rng.randint(15, 60) * 3**level for _ in range(2 + level)]
    kerf = rng.randint(0, 3)
    count = rng.randint(2, 4 * len(planks))
    if rng.random() < 0.05:
        planks = [rng.randint(1, 9) for _ in planks]
        count += sum(planks)
    return {"planks": planks, "count": count, "kerf": kerf}


TESTS = [
    ({"planks": [10], "count": 3, "kerf": 1}, 2),
    ({"planks": [11], "count": 3, "kerf": 1}, 3),
    ({"planks": [3, 2], "count": 6, "kerf": 0}, 0),
    ({"planks": [50, 20], "count": 1, "kerf": 3}, 50),
    ({"planks": [30, 20, 9], "count": 5, "kerf": 0}, 10),
    ({"planks": [5, 5], "count": 7, "kerf": 1}, 0),
]
