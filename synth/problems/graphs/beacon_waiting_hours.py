"""Beacon towers are numbered from 0. `seen_by` lists for each tower the towers whose guards can see
its fire (a tower that sees another need not be seen by it), `guards` how many guards each tower
has, and `lit` the different towers where a fire burns from the start; there may be none. One hour
after a tower's fire began to burn, every tower that can see it lights its own, if it does not burn
already. The night lasts `night` hours. Each guard waits from the start of the night until the own
tower's fire burns, and where it does not burn by the end of the night, the guard has waited all
night. How many hours have all guards waited, added up?
"""

from collections import deque
from random import Random
from typing import Any


def solve(seen_by: list[list[int]], guards: list[int], lit: list[int], night: int) -> int:
    """The hours of waiting of all guards."""
    hour: dict[int, int] = {}
    queue: deque[int] = deque()
    for tower in lit:
        hour[tower] = 0
        queue.append(tower)
    while queue:
        tower = queue.popleft()
        if hour[tower] == night:
            continue
        for other in seen_by[tower]:
            if other not in hour:
                hour[other] = hour[tower] + 1
                queue.append(other)
    total = 0
    for tower, count in enumerate(guards):
        total += count * hour.get(tower, night)
    return total


def solve_hour_by_hour(
    seen_by: list[list[int]], guards: list[int], lit: list[int], night: int
) -> int:
    """In each hour count the guards of all towers that are dark."""
    burning = [tower in lit for tower in range(len(guards))]
    total = 0
    for _ in range(night):
        total += sum(count for count, burns in zip(guards, burning, strict=True) if not burns)
        after = list(burning)
        for tower, watchers in enumerate(seen_by):
            for other in watchers:
                after[other] = after[other] or burning[tower]
        burning = after
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A few fires, at times none; some towers stay dark, since none sees a fire or the night is short."""
    size = rng.randint(5, 8) + 5 * level
    seen_by: list[list[int]] = []
    for tower in range(size):
        others = [other for other in range(size) if other != tower]
        seen_by.append(sorted(rng.sample(others, rng.choice([0, 1, 1, 2, 2]))))
    return {
        "seen_by": seen_by,
        "guards": [rng.randint(1, 9) for _ in range(size)],
        "lit": rng.sample(range(size), rng.choice([0, 1, 1, 1, 1, 1, 2, 2, 2])),
        "night": rng.randint(2, 6) + level,
    }


TESTS = [
    ({"seen_by": [[1], [2], [0]], "guards": [3, 2, 4], "lit": [0], "night": 5}, 10),
    ({"seen_by": [[1], [2], [0]], "guards": [3, 2, 4], "lit": [0], "night": 1}, 6),
    ({"seen_by": [[1], []], "guards": [1, 6], "lit": [1], "night": 4}, 4),
    ({"seen_by": [[1], [0]], "guards": [2, 3], "lit": [], "night": 3}, 15),
    (
        {
            "seen_by": [[1, 2], [3], [3], [], [3]],
            "guards": [1, 1, 1, 5, 2],
            "lit": [4, 0],
            "night": 9,
        },
        7,
    ),
]
