"""A print shop has one press and a queue of jobs. The lists `urgencies` and `pages`, equally long and
with at least one entry, hold the urgency and the number of pages, at least 1, of each job, from the
front of the queue to its end. The printer looks at the job in front: if any other job in the queue
has a greater urgency, the job in front goes to the end of the queue unprinted; otherwise it is
printed and gone. No jobs are added. How many pages does the press print before it begins with the
job whose place in the lists is `wanted`, counted from 0?"""

from collections import deque
from random import Random
from typing import Any


def top_urgency(queue: deque[int], urgencies: list[int]) -> int:
    """The greatest urgency of the jobs in the queue."""
    top = urgencies[queue[0]]
    for job in queue:
        if urgencies[job] > top:
            top = urgencies[job]
    return top


def solve(urgencies: list[int], pages: list[int], wanted: int) -> int:
    """Pages printed before the wanted job."""
    queue = deque(range(len(urgencies)))
    printed = 0
    while queue:
        top = top_urgency(queue, urgencies)
        job = queue.popleft()
        if urgencies[job] < top:
            queue.append(job)
        elif job == wanted:
            break
        else:
            printed += pages[job]
    return printed


def solve_by_urgency(urgencies: list[int], pages: list[int], wanted: int) -> int:
    """Jobs of one urgency follow each other, from where the last urgency ended."""
    printed = 0
    start = 0
    size = len(urgencies)
    for urgency in sorted(set(urgencies), reverse=True):
        end = start
        for step in range(size):
            job = (start + step) % size
            if urgencies[job] != urgency:
                continue
            if job == wanted:
                return printed
            printed += pages[job]
            end = job + 1
        start = end
    raise AssertionError("every job is printed")


def generate(rng: Random, level: int) -> dict[str, Any]:
    """The wanted job is seldom among the most urgent ones."""
    size = rng.randint(4, 5) + 3 * level
    urgencies = [rng.randint(1, 3 + level) for _ in range(size)]
    wanted = rng.randrange(size)
    if urgencies[wanted] == max(urgencies):
        wanted = rng.randrange(size)
    return {
        "urgencies": urgencies,
        "pages": [rng.randint(1, 40) for _ in range(size)],
        "wanted": wanted,
    }


TESTS = [
    ({"urgencies": [1, 2, 1], "pages": [5, 7, 9], "wanted": 0}, 16),
    ({"urgencies": [3], "pages": [4], "wanted": 0}, 0),
    ({"urgencies": [2, 2, 2], "pages": [1, 2, 3], "wanted": 2}, 3),
    ({"urgencies": [1, 3, 2, 3, 2], "pages": [10, 20, 30, 40, 50], "wanted": 2}, 110),
    ({"urgencies": [1, 3, 2], "pages": [8, 8, 8], "wanted": 1}, 0),
]
