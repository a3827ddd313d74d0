"""A joiner works on one job at a time, without breaking it off. Job number i can be started from hour
`releases[i]` on, takes `durations[i]` hours (at least 1), and is of use only if it is done by hour
`deadlines[i]` at the latest. The lists are in no particular order. The clock starts at hour 0. Whenever
the joiner is free, the jobs are looked at that have been released by then (those of this very hour
included) and were not started: those that, started now, would be done after their deadline are dropped.
Of the others, the job with the earliest deadline is started at once; of equal deadlines the one with the
shorter duration, then the one with the lower number. If there is none, the joiner rests until the next
release.
The spare time of a job that is done is the number of hours from its end to its deadline. Return the
spare time of all jobs done, added up.
"""

from random import Random
from typing import Any


def solve(releases: list[int], durations: list[int], deadlines: list[int]) -> int:
    """Spare time of the jobs done."""
    pending = set(range(len(releases)))
    now = 0
    spare = 0
    while pending:
        best = -1
        for job in sorted(pending):
            if releases[job] > now:
                continue
            if now + durations[job] > deadlines[job]:
                pending.remove(job)
                continue
            rank = (deadlines[job], durations[job])
            if best < 0 or rank < (deadlines[best], durations[best]):
                best = job
        if best >= 0:
            now += durations[best]
            spare += deadlines[best] - now
            pending.remove(best)
        elif pending:
            now = min(releases[job] for job in pending)
    return spare


def solve_by_hours(releases: list[int], durations: list[int], deadlines: list[int]) -> int:
    """Walk through the hours; in a free hour take the first that fits of all jobs in order of rank."""
    jobs = sorted(zip(deadlines, durations, range(len(releases)), strict=True))
    free_from = 0
    spare = 0
    for hour in range(max(deadlines, default=0)):
        if hour < free_from:
            continue
        for job in jobs:
            deadline, duration, number = job
            if releases[number] <= hour and hour + duration <= deadline:
                free_from = hour + duration
                spare += deadline - free_from
                jobs.remove(job)
                break
    return spare


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Jobs of which some come too late to be done in time."""
    count = rng.randint(4, 6) * (level + 1)
    releases = [rng.choice([0, rng.randint(0, 4 * count)]) for _ in range(count)]
    durations = [rng.randint(1, 6) for _ in range(count)]
    deadlines = [
        release + duration + rng.choice([-1, 0, 2, 4, 6, 9, 13])
        for release, duration in zip(releases, durations, strict=True)
    ]
    return {"releases": releases, "durations": durations, "deadlines": deadlines}


TESTS = [
    ({"releases": [0, 1], "durations": [4, 2], "deadlines": [4, 8]}, 2),
    ({"releases": [0], "durations": [6], "deadlines": [5]}, 0),
    ({"releases": [0, 0], "durations": [3, 2], "deadlines": [9, 4]}, 6),
    ({"releases": [0, 1], "durations": [4, 1], "deadlines": [10, 3]}, 6),
    ({"releases": [5, 2], "durations": [2, 2], "deadlines": [8, 4]}, 1),
    ({"releases": [0, 0, 0], "durations": [2, 1, 2], "deadlines": [4, 4, 5]}, 4),
]
