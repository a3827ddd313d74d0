"""Two clerks each keep a ledger of sums, written in ascending order; equal sums may occur, also in
both ledgers. The lists `upper` and `lower` hold the sums of the two ledgers; each has at least one
sum. If all entries of both ledgers were written into one list in ascending order, equal sums as
often as they occur, which sum would be the `rank`-th of it, where `rank` 1 is the smallest? `rank`
is at most the number of entries of both ledgers together."""

from random import Random
from typing import Any


def solve(upper: list[int], lower: list[int], rank: int) -> int:
    """The sum of this rank in both ledgers together."""
    first_upper = 0
    first_lower = 0
    while rank > 1:
        if first_upper == len(upper):
            return lower[first_lower + rank - 1]
        if first_lower == len(lower):
            return upper[first_upper + rank - 1]
        half = rank // 2
        in_upper = min(first_upper + half, len(upper)) - 1
        in_lower = min(first_lower + half, len(lower)) - 1
        if upper[in_upper] <= lower[in_lower]:
            rank -= in_upper + 1 - first_upper
            first_upper = in_upper + 1
        else:
            rank -= in_lower + 1 - first_lower
            first_lower = in_lower + 1
    if first_upper == len(upper):
        return lower[first_lower]
    if first_lower == len(lower):
        return upper[first_upper]
    return min(upper[first_upper], lower[first_lower])


def solve_by_merging(upper: list[int], lower: list[int], rank: int) -> int:
    """Write both into one list."""
    return sorted(upper + lower)[rank - 1]


def draw_ledger(rng: Random, size: int) -> list[int]:
    """Sums in ascending order, from a range of their own."""
    start = rng.randint(0, 100)
    return sorted(rng.randint(start, start + 3 * size) for _ in range(size))


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Ledgers of unlike length, so that one of them may be used up before the rank is reached."""
    most = min(60 * 8**level, 600)
    upper = draw_ledger(rng, rng.randint(most // 6, most))
    lower = draw_ledger(rng, rng.randint(most // 6, most))
    size = len(upper) + len(lower)
    return {"upper": upper, "lower": lower, "rank": rng.randint(size // 4, size)}


TESTS = [
    ({"upper": [1, 4, 9], "lower": [2, 3, 10, 12], "rank": 4}, 4),
    ({"upper": [5], "lower": [5], "rank": 2}, 5),
    ({"upper": [1, 2], "lower": [7, 8, 9], "rank": 5}, 9),
    ({"upper": [30, 40], "lower": [6], "rank": 1}, 6),
    ({"upper": [3, 3, 8], "lower": [3, 5], "rank": 4}, 5),
]
