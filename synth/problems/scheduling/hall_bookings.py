"""A centre lets rooms, numbered from 0; room r has `seats[r]` seats. `requests` lists the wishes in order,
each as [begin, end, people], for the hours from `begin` up to `end` (the hour `end` itself is not included,
and `end` is later than `begin`). Each wish is decided before the next is looked at, for good. It gets the
room with the fewest seats among those that have at least `people` seats and are not booked in any of its
hours; of equal rooms the one with the lowest number. If there is no such room, the wish is put off by an
hour, begin and end alike, and tried again, but it is put off at most `patience` times (may be 0); if
there is still no room, it is refused.
A booking wastes, in each of its hours, the seats that its people leave empty. Return the seats wasted
by all bookings, over all hours.
"""

from random import Random
from typing import Any


def find_room(
    seats: list[int], booked: list[list[list[int]]], begin: int, end: int, people: int
) -> int:
    """The smallest room that is free and large enough; -1 if there is none."""
    best = -1
    for room in range(len(seats)):
        if seats[room] < people or (best >= 0 and seats[room] >= seats[best]):
            continue
        is_free = True
        for other_begin, other_end in booked[room]:
            if begin < other_end and other_begin < end:
                is_free = False
        if is_free:
            best = room
    return best


def solve(seats: list[int], requests: list[list[int]], patience: int) -> int:
    """Seats wasted, times hours."""
    booked: list[list[list[int]]] = [[] for _ in seats]
    wasted = 0
    for begin, end, people in requests:
        for delay in range(patience + 1):
            room = find_room(seats, booked, begin + delay, end + delay, people)
            if room >= 0:
                booked[room].append([begin + delay, end + delay])
                wasted += (seats[room] - people) * (end - begin)
                break
    return wasted


def solve_by_hours(seats: list[int], requests: list[list[int]], patience: int) -> int:
    """Keep a set of taken hours for each room, the rooms sorted by size."""
    rooms = sorted((size, room) for room, size in enumerate(seats))
    taken: set[tuple[int, int]] = set()
    wasted = 0
    for begin, end, people in requests:
        hours = range(begin, end)
        offers = [
            (delay, size, room)
            for delay in range(patience + 1)
            for size, room in rooms
            if size >= people and not any((room, hour + delay) in taken for hour in hours)
        ]
        if offers:
            delay, size, room = min(offers)
            taken |= {(room, hour + delay) for hour in hours}
            wasted += len(hours) * (size - people)
    return wasted


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Wishes that crowd into few rooms, some of them of equal size."""
    rooms = rng.randint(2, 3) + level // 2
    count = rng.randint(4, 6) * (level + 1)
    requests = []
    for _ in range(count):
        begin = rng.randint(0, 3 + 2 * level)
        requests.append([begin, begin + rng.randint(1, 4), rng.randint(1, 9)])
    return {
        "seats": [rng.choice([4, 6, 6, 8, 11]) for _ in range(rooms)],
        "requests": requests,
        "patience": rng.randint(0, 2),
    }


TESTS = [
    ({"seats": [4, 10], "requests": [[0, 2, 3]], "patience": 0}, 2),
    ({"seats": [4, 10], "requests": [[0, 2, 3], [1, 3, 4]], "patience": 0}, 14),
    ({"seats": [5], "requests": [[0, 2, 5], [2, 4, 3], [3, 5, 1]], "patience": 0}, 4),
    (
        {
            "seats": [3],
            "requests": [[0, 1, 4], [0, 1, 1], [3, 4, 3], [0, 3, 2]],
            "patience": 1,
        },
        2,
    ),
    (
        {
            "seats": [6, 6, 2],
            "requests": [[0, 3, 2], [1, 4, 2], [2, 5, 5], [2, 3, 1]],
            "patience": 0,
        },
        15,
    ),
    (
        {
            "seats": [5],
            "requests": [[2, 4, 5], [0, 2, 3], [3, 5, 1], [4, 6, 2]],
            "patience": 1,
        },
        12,
    ),
]
