"""A workshop does one job after another. `needs` tells for each job, by its name, the names of the
jobs that must be finished before it; each of them is a job of the workshop too, and none is named
twice for one job. Whenever the workshop is free, it takes, of all the jobs that are not done yet
and whose needs are all finished, the one whose name is alphabetically first (names are lower-case
words). It closes when there is no such job left, even if some jobs were never done. Answer the
names of the jobs in the order in which they are done.
"""

import heapq
from random import Random
from typing import Any


def solve(needs: dict[str, list[str]]) -> list[str]:
    """The jobs in the order in which they get done."""
    waiting = {job: len(before) for job, before in needs.items()}
    unlocks: dict[str, list[str]] = {job: [] for job in needs}
    for job, before in needs.items():
        for other in before:
            unlocks[other].append(job)
    ready = [job for job, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        job = heapq.heappop(ready)
        order.append(job)
        for other in unlocks[job]:
            waiting[other] -= 1
            if waiting[other] == 0:
                heapq.heappush(ready, other)
    return order


def solve_by_looking_again(needs: dict[str, list[str]]) -> list[str]:
    """Go through all names from the first after each job."""
    names = sorted(needs)
    done: list[str] = []
    while True:
        chosen = None
        for job in names:
            if job not in done and all(other in done for other in needs[job]):
                chosen = job
                break
        if chosen is None:
            return done
        done.append(chosen)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Mostly without circles; in some draws one job closes a circle, and what follows it is stuck."""
    words = [
        "bend",
        "bolt",
        "bore",
        "carve",
        "clamp",
        "cut",
        "drill",
        "file",
        "fold",
        "forge",
        "gild",
        "glue",
        "grind",
        "hone",
        "lathe",
        "mill",
        "notch",
        "oil",
        "paint",
        "plane",
        "press",
        "rivet",
        "rub",
        "sand",
        "saw",
        "seal",
        "shape",
        "solder",
        "stain",
        "turn",
        "varnish",
        "weld",
    ]
    size = rng.randint(5, 7) + 4 * level
    jobs = rng.sample(words, min(size, len(words)))
    needs: dict[str, list[str]] = {}
    for index, job in enumerate(jobs):
        count = min(index, rng.choice([0, 1, 1, 2]))
        needs[job] = rng.sample(jobs[:index], count)
    if rng.random() < 0.25:
        early = rng.randrange(len(jobs) - 1)
        late = rng.randrange(early, len(jobs))
        if jobs[late] not in needs[jobs[early]]:
            needs[jobs[early]].append(jobs[late])
    listed = list(needs)
    rng.shuffle(listed)
    return {"needs": {job: needs[job] for job in listed}}


TESTS = [
    (
        {"needs": {"saw": [], "glue": ["saw", "plane"], "plane": ["saw"], "oil": ["glue"]}},
        ["saw", "plane", "glue", "oil"],
    ),
    ({"needs": {"weld": [], "bend": [], "cut": ["weld"]}}, ["bend", "weld", "cut"]),
    ({"needs": {"seal": ["rub"], "rub": ["seal"], "turn": []}}, ["turn"]),
    ({"needs": {"mill": ["mill"], "file": ["mill"]}}, []),
    (
        {"needs": {"a": ["e"], "b": [], "c": ["b"], "d": [], "e": ["d"]}},
        ["b", "c", "d", "e", "a"],
    ),
]
