"""A courier rides from town 0 to the last town. The list `fees` has one entry per town: what the
inn of that town costs. The list `roads` has entries [one town, other town, toll]; a road can be
ridden in both directions, its toll is paid at each ride, never joins a town with itself, and there
may be several roads between the same two towns. In each town that the courier comes through on the
way, the inn's fee has to be paid at each visit, but not in town 0 when setting out and not in the
last town on arrival there. No fee and no toll is below 0. What is the least that the whole journey
costs? If there is just one town, it costs 0; if the last town cannot be reached, answer -1.
"""

import heapq
from random import Random
from typing import Any


def solve(fees: list[int], roads: list[list[int]]) -> int:
    """The least cost of tolls and inns from the first town to the last."""
    last = len(fees) - 1
    neighbours: list[list[tuple[int, int]]] = [[] for _ in fees]
    for a, b, toll in roads:
        neighbours[a].append((b, toll))
        neighbours[b].append((a, toll))
    settled: set[int] = set()
    heap = [(0, 0)]
    while heap:
        spent, town = heapq.heappop(heap)
        if town in settled:
            continue
        settled.add(town)
        if town == last:
            return spent
        if town != 0:
            spent += fees[town]
        for other, toll in neighbours[town]:
            if other not in settled:
                heapq.heappush(heap, (spent + toll, other))
    return -1


def solve_by_rounds(fees: list[int], roads: list[list[int]]) -> int:
    """Shorten every way over every road until nothing changes."""
    best: list[int | None] = [None] * len(fees)
    best[0] = 0
    changed = True
    while changed:
        changed = False
        for road in roads:
            for a, b in ((road[0], road[1]), (road[1], road[0])):
                known = best[a]
                if known is None:
                    continue
                cost = known + road[2] + (fees[a] if a else 0)
                there = best[b]
                if there is None or cost < there:
                    best[b] = cost
                    changed = True
    answer = best[-1]
    return -1 if answer is None else answer


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Mostly joined up; now and then the last town is cut off, rarely it is the only one."""
    if rng.random() < 0.03:
        return {"fees": [rng.randint(1, 9)], "roads": []}
    size = rng.randint(5, 6) + 4 * level
    fees = [rng.randint(0, 12) for _ in range(size)]
    is_cut_off = rng.random() < 0.1
    joined = size - 1 if is_cut_off else size
    roads = [[rng.randrange(town), town, rng.randint(1, 20)] for town in range(1, joined)]
    for _ in range(rng.randint(2, 3) + 3 * level):
        a, b = rng.sample(range(joined), 2)
        roads.append([a, b, rng.randint(1, 30)])
    rng.shuffle(roads)
    return {"fees": fees, "roads": roads}


TESTS = [
    ({"fees": [5, 10, 2, 7], "roads": [[0, 1, 1], [1, 3, 1], [0, 2, 4], [3, 2, 5]]}, 11),
    ({"fees": [4], "roads": []}, 0),
    ({"fees": [1, 1, 1], "roads": [[0, 1, 3]]}, -1),
    ({"fees": [9, 9], "roads": [[0, 1, 8], [1, 0, 6]]}, 6),
    ({"fees": [0, 0, 0, 50], "roads": [[0, 3, 10], [0, 1, 2], [1, 2, 2], [2, 3, 2]]}, 6),
]
