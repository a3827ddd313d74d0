"""Watchmen on a cliff count the sails that pass each day: the list `sails` holds the counts, 0 or
more, day by day. A watch lasts `span` consecutive days, at least 1 and at most as many as there are
in the list, and on each day on which a full watch is still possible one begins, so that watches
overlap. Each watch reports its largest count, and also on which day of the watch it was, the first
day of the watch being day 1; if the largest count came up on several days of the watch, it reports
the last of them. What is the sum, over all watches, of the largest count multiplied by that day?"""

from collections import deque
from random import Random
from typing import Any


def solve(sails: list[int], span: int) -> int:
    """Sum of each watch's largest count times its day."""
    candidates: deque[int] = deque()
    total = 0
    for day, count in enumerate(sails):
        while candidates and sails[candidates[-1]] <= count:
            candidates.pop()
        candidates.append(day)
        start = day - span + 1
        if candidates[0] < start:
            candidates.popleft()
        if start >= 0:
            peak = candidates[0]
            total += sails[peak] * (peak - start + 1)
    return total


def solve_by_watches(sails: list[int], span: int) -> int:
    """Look through each watch."""
    total = 0
    for start in range(len(sails) - span + 1):
        reports = [(count, day) for day, count in enumerate(sails[start : start + span], 1)]
        count, day = max(reports)
        total += count * day
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Counts of which some are equal."""
    size = rng.randint(6, 9) + 6 * level
    return {
        "sails": [rng.randint(0, 12) for _ in range(size)],
        "span": rng.randint(2, 4 + level),
    }


TESTS = [
    ({"sails": [3, 1, 2], "span": 2}, 7),
    ({"sails": [5], "span": 1}, 5),
    ({"sails": [4, 4, 1], "span": 2}, 12),
    ({"sails": [1, 6, 2, 6], "span": 4}, 24),
    ({"sails": [2, 0, 3], "span": 1}, 5),
    ({"sails": [9, 7, 5, 8], "span": 3}, 33),
]
