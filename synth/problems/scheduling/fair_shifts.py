"""A bakery plans its shifts day by day. On day d (counted from 0) `needs[d]` people are needed (may be 0),
and the workers whose numbers are in `away[d]` cannot come. Workers are numbered from 0; worker w is paid
`pays[w]` for each day worked. Nobody works on three days in a row. Of the workers who can come and who did
not work on both days before, those are called who have worked on the fewest days so far; of equal ones
those with the lower pay first, then those with the lower number. For each person who is still missing when
nobody else can be called, an agency sends somebody for `agency` coins.
Return what all workers and the agency cost, over all days.
"""

from random import Random
from typing import Any


def solve(needs: list[int], pays: list[int], away: list[list[int]], agency: int) -> int:
    """Cost of all days."""
    worked = [0] * len(pays)
    streak = [0] * len(pays)
    cost = 0
    for day in range(len(needs)):
        able = [w for w in range(len(pays)) if w not in away[day] and streak[w] < 2]
        able.sort(key=lambda worker: (worked[worker], pays[worker], worker))
        called = able[: needs[day]]
        for worker in range(len(pays)):
            if worker in called:
                worked[worker] += 1
                streak[worker] += 1
                cost += pays[worker]
            else:
                streak[worker] = 0
        cost += agency * (needs[day] - len(called))
    return cost


def solve_by_rosters(needs: list[int], pays: list[int], away: list[list[int]], agency: int) -> int:
    """Keep each day's roster, and call one person at a time."""
    rosters: list[set[int]] = [set(), set()]
    cost = 0
    for need, absent in zip(needs, away, strict=True):
        tired = rosters[-1] & rosters[-2]
        free = set(range(len(pays))) - set(absent) - tired
        today: set[int] = set()
        for _ in range(need):
            best: tuple[int, int, int] | None = None
            for worker in free - today:
                days = sum(worker in roster for roster in rosters)
                rank = (days, pays[worker], worker)
                best = rank if best is None else min(best, rank)
            if best is None:
                cost += agency
            else:
                cost += best[1]
                today.add(best[2])
        rosters.append(today)
    return cost


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A small team, of which somebody is away on about every second day."""
    days = rng.randint(4, 6) * (level + 1)
    team = rng.randint(2, 3) + level // 2
    return {
        "needs": [rng.choice([0, 1, 1, 2, 2, 3]) for _ in range(days)],
        "pays": [rng.randint(3, 15) for _ in range(team)],
        "away": [rng.sample(range(team), rng.choice([0, 0, 1, 1, 2])) for _ in range(days)],
        "agency": rng.randint(12, 25),
    }


TESTS = [
    ({"needs": [1], "pays": [5, 3], "away": [[]], "agency": 9}, 3),
    ({"needs": [1, 1], "pays": [5, 3], "away": [[], []], "agency": 9}, 8),
    ({"needs": [1, 1, 1], "pays": [4], "away": [[], [], []], "agency": 10}, 18),
    ({"needs": [2, 2], "pays": [4, 6, 5], "away": [[0], []], "agency": 20}, 20),
    ({"needs": [0, 3, 1], "pays": [2, 2], "away": [[], [1], [0]], "agency": 7}, 18),
    ({"needs": [1, 0, 1, 1], "pays": [4], "away": [[], [], [], []], "agency": 10}, 12),
]
