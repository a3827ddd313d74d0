"""A weaver has strips of cloth, whose lengths in inches, all above 0, are given by `lengths`; there
are at least two. Any two of the strips could be cut, without waste, into pieces that are all
equally long, a whole number of inches each; for a pair, take the greatest length of piece with
which this can be done. A piece of this length is the pair's measure. What is the sum of the
measures of all pairs that can be made of the strips? Each two strips are one pair, also when they
are equally long.
"""

from random import Random
from typing import Any


def measure(one: int, other: int) -> int:
    """The greatest length into which both can be cut."""
    while other:
        one, other = other, one % other
    return one


def solve(lengths: list[int]) -> int:
    """The sum over all pairs."""
    total = 0
    for first in range(len(lengths)):
        for second in range(first + 1, len(lengths)):
            total += measure(lengths[first], lengths[second])
    return total


def solve_by_divisors(lengths: list[int]) -> int:
    """For each length of piece, from the greatest down, count the pairs with just this measure."""
    total = 0
    pairs: dict[int, int] = {}
    longest = max(lengths)
    for piece in range(longest, 0, -1):
        cut = sum(1 for length in lengths if length % piece == 0)
        pairs[piece] = cut * (cut - 1) // 2
        for multiple in range(2 * piece, longest + 1, piece):
            pairs[piece] -= pairs[multiple]
        total += piece * pairs[piece]
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Lengths that have much in common and lengths that have nothing."""
    lengths = []
    for _ in range(4 + 2 * level):
        if rng.random() < 0.6:
            lengths.append(rng.choice([2, 3, 4, 6]) * rng.randint(1, 12))
        else:
            lengths.append(rng.randint(1, 50 + 50 * level))
    return {"lengths": lengths}


TESTS = [
    ({"lengths": [6, 9, 12]}, 12),
    ({"lengths": [5, 7]}, 1),
    ({"lengths": [8, 8, 8]}, 24),
    ({"lengths": [1, 30, 45, 10]}, 33),
    ({"lengths": [13, 26]}, 13),
]
