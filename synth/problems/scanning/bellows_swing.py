"""The list `pressures` holds the pressures of a forge's bellows, one a second, at least one of them.
A stretch of consecutive seconds swings if within it the pressure never stays equal from one second
to the next and rises and falls by turns: after each rise comes a fall and after each fall a rise.
A single second swings, and so do two neighbouring seconds with different pressures. Take the
longest stretch that swings, the earliest of them if several are longest. What is the sum of its
pressures?"""

from itertools import pairwise
from random import Random
from typing import Any


def direction_of(before: int, now: int) -> int:
    """1 if the pressure rises, -1 if it falls, 0 if it stays."""
    if now > before:
        return 1
    if now < before:
        return -1
    return 0


def solve(pressures: list[int]) -> int:
    """Sum of the earliest longest swinging stretch."""
    length = 1
    total = pressures[0]
    direction = 0
    best_length = 1
    best_total = pressures[0]
    for second in range(1, len(pressures)):
        before, now = pressures[second - 1], pressures[second]
        turn = direction_of(before, now)
        if turn == 0:
            length, total = 1, now
        elif turn == direction:
            length, total = 2, before + now
        else:
            length += 1
            total += now
        direction = turn
        if length > best_length:
            best_length, best_total = length, total
    return best_total


def solve_by_stretches(pressures: list[int]) -> int:
    """Try each stretch, the longest first."""
    for length in range(len(pressures), 0, -1):
        for start in range(len(pressures) - length + 1):
            part = pressures[start : start + length]
            steps = [after - before for before, after in pairwise(part)]
            turns = pairwise(steps)
            if 0 not in steps and all((one > 0) != (two > 0) for one, two in turns):
                return sum(part)
    raise AssertionError("a single second swings")


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Pressures of which some repeat the one before."""
    pressures = [rng.randint(1, 30)]
    for _ in range(rng.randint(5, 8) + 6 * level):
        pressures.append(pressures[-1] if rng.random() < 0.15 else rng.randint(1, 30))
    return {"pressures": pressures}


TESTS = [
    ({"pressures": [4]}, 4),
    ({"pressures": [3, 3, 3]}, 3),
    ({"pressures": [1, 5, 2, 6, 8]}, 14),
    ({"pressures": [1, 2, 3, 4]}, 3),
    ({"pressures": [9, 9, 2, 7, 7, 1, 4]}, 18),
    ({"pressures": [2, 8, 8, 5, 6, 1]}, 20),
]
