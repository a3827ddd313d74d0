"""Two clerks each keep a ledger of sums, written in ascending order; equal sums may occur, also in
both ledgers. The lists `upper` and `lower` hold the sums of the two ledgers; each has at least one
sum. If all entries of both ledgers were written into one list in ascending order, equal sums as
often as they occur, which sum would be the `rank`-th of it, where `rank` 1 is the smallest? `rank`
is at most the number of entries of both ledgers together."""

from random import Random
from typing import Any


def pick(upper: list[int], lower: list[int], at_upper: int, at_lower: int, rank: int) -> int:
    """The sum of this rank among those from the two places on."""
    if at_upper == len(upper):
        return lower[at_lower + rank - 1]
    if at_lower == len(lower):
        return upper[at_upper + rank - 1]
    if rank == 1:
        return min(upper[at_upper], lower[at_lower])
    upper_skip = min(rank // 2, len(upper) - at_upper)
    lower_skip = min(rank // 2, len(lower) - at_lower)
    if upper[at_upper + upper_skip - 1] <= lower[at_lower + lower_skip - 1]:
        return pick(upper, lower, at_upper + upper_skip, at_lower, rank - upper_skip)
    return pick(upper, lower, at_upper, at_lower + lower_skip, rank - lower_skip)


def solve(upper: list[int], lower: list[int], rank: int) -> int:
    """The sum of this rank in both ledgers together."""
    return pick(upper, lower, 0, 0, rank)


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
