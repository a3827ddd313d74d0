"""An office has `desks` desks (at least 1), each with a line of its own. Customer number i comes in minute
`arrivals[i]` (never earlier than the one before) and takes `durations[i]` minutes (at least 1) at a desk.
A customer goes at once to the desk with the fewest people, those waiting in its line and the one being
served counted together; of equal ones, to the desk with the lowest number. Nobody changes lines later.
A desk serves its line in order and without pauses. Who is done in a minute has left before somebody who
comes in the same minute looks at the lines; of those who come in the same minute, the one with the lower
number chooses first, and the next one sees that.
Return the minutes that customers wait between coming and being served, added up.
"""

from collections import deque
from random import Random
from typing import Any


def solve(arrivals: list[int], durations: list[int], desks: int) -> int:
    """Minutes of waiting."""
    lines: list[deque[int]] = [deque() for _ in range(desks)]
    waited = 0
    for i in range(len(arrivals)):
        now = arrivals[i]
        best = 0
        for desk in range(desks):
            while lines[desk] and lines[desk][0] <= now:
                lines[desk].popleft()
            if len(lines[desk]) < len(lines[best]):
                best = desk
        begin = now
        if lines[best]:
            begin = lines[best][-1]
        lines[best].append(begin + durations[i])
        waited += begin - now
    return waited


def solve_by_minutes(arrivals: list[int], durations: list[int], desks: int) -> int:
    """Let the clock tick: each minute everybody behind the first in a line waits."""
    lines: list[list[int]] = [[] for _ in range(desks)]
    left = list(durations)
    coming = 0
    waited = 0
    minute = 0
    while coming < len(arrivals) or any(lines):
        while coming < len(arrivals) and arrivals[coming] == minute:
            min(lines, key=len).append(coming)
            coming += 1
        for line in lines:
            if line:
                waited += len(line) - 1
                left[line[0]] -= 1
                if left[line[0]] == 0:
                    line.pop(0)
        minute += 1
    return waited


def generate(rng: Random, level: int) -> dict[str, Any]:
    """More work than the desks can do without lines."""
    count = rng.randint(4 * (level + 1), 6 * (level + 1))
    now = 0
    arrivals = []
    for _ in range(count):
        arrivals.append(now)
        now += rng.choice([0, 0, 1, 1, 2])
    desks = 2 if level == 0 else rng.randint(2, 2 + level)
    return {
        "arrivals": arrivals,
        "durations": [rng.randint(1, 9) for _ in range(count)],
        "desks": desks,
    }


TESTS = [
    ({"arrivals": [0, 0], "durations": [5, 3], "desks": 1}, 5),
    ({"arrivals": [0, 0], "durations": [5, 3], "desks": 2}, 0),
    ({"arrivals": [0, 0, 1], "durations": [5, 3, 2], "desks": 2}, 4),
    ({"arrivals": [0, 0, 3, 3], "durations": [3, 9, 4, 1], "desks": 2}, 4),
    ({"arrivals": [0, 1, 2, 2], "durations": [10, 10, 1, 1], "desks": 2}, 17),
]
