"""A kiln burns pots of several potters in turns. Job number i comes in hour `arrivals[i]` (never earlier
than the one before) and goes to the end of the queue; it needs `works[i]` hours of burning (at least 1).
Whenever the kiln is idle and the queue is not empty, the job at its front is taken out and burns for
`turn` hours (at least 1), or for what it still needs if that is less. If it then needs more, it goes to
the end of the queue, behind all jobs that have come until then, those of this very hour included. Before
a job burns, the kiln is set up for it, which takes `setup` hours (may be 0), unless the job that burned
last was the same one or no job has burned yet. A job is taken out of the queue before its setup. When
the queue is empty, the kiln stays idle, set up as it is, until the next job comes.
Return the hours from a job's coming to the end of its burning, added up over all jobs.
"""

from collections import deque
from random import Random
from typing import Any


def solve(arrivals: list[int], works: list[int], turn: int, setup: int) -> int:
    """Hours that jobs are in the workshop."""
    queue: deque[int] = deque()
    left = list(works)
    now = 0
    coming = 0
    last = -1
    total = 0
    while queue or coming < len(arrivals):
        if not queue:
            now = max(now, arrivals[coming])
            queue.append(coming)
            coming += 1
            continue
        job = queue.popleft()
        if last not in (-1, job):
            now += setup
        last = job
        burned = min(turn, left[job])
        now += burned
        left[job] -= burned
        while coming < len(arrivals) and arrivals[coming] <= now:
            queue.append(coming)
            coming += 1
        if left[job] > 0:
            queue.append(job)
        else:
            total += now - arrivals[job]
    return total


def solve_by_hours(arrivals: list[int], works: list[int], turn: int, setup: int) -> int:
    """Hour by hour: each unfinished job that is here adds one hour."""
    left = dict(enumerate(works))
    queue: list[int] = []
    plan: list[int | None] = []  # What the kiln does in the hours to come; None is setting up.
    job = None
    hour = total = 0
    while left:
        queue += [i for i, arrival in enumerate(arrivals) if arrival == hour]
        if not plan:
            if job in left and job is not None:
                queue.append(job)
            if queue:
                is_new = job is not None and queue[0] != job
                job = queue.pop(0)
                plan = [None] * (setup * is_new) + [job] * min(turn, left[job])
        total += sum(1 for i in left if arrivals[i] <= hour)
        burning = plan.pop(0) if plan else None
        if burning is not None:
            left[burning] -= 1
            if left[burning] == 0:
                del left[burning]
        hour += 1
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Jobs that come while others burn, with an idle kiln now and then."""
    count = rng.randint(3, 4) + 2 * level
    now = rng.randint(0, 2)
    arrivals = []
    for _ in range(count):
        arrivals.append(now)
        now += rng.choice([0, 1, 2, 3, 8])
    return {
        "arrivals": arrivals,
        "works": [rng.randint(1, 6) for _ in range(count)],
        "turn": rng.randint(2, 3),
        "setup": rng.randint(0, 2),
    }


TESTS = [
    ({"arrivals": [0], "works": [5], "turn": 2, "setup": 1}, 5),
    ({"arrivals": [0, 0], "works": [3, 2], "turn": 2, "setup": 1}, 12),
    ({"arrivals": [0, 2], "works": [5, 1], "turn": 2, "setup": 0}, 7),
    ({"arrivals": [0, 10], "works": [2, 3], "turn": 5, "setup": 2}, 7),
    ({"arrivals": [0, 1, 1], "works": [2, 4, 1], "turn": 3, "setup": 1}, 18),
]
