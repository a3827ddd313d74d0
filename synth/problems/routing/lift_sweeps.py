"""A lift with room for `capacity` people (at least 1) stands at floor 0, set to go up. Person number i
waits at floor `starts[i]` and wants to floor `targets[i]`, which is another one (floors are 0 or higher).
All are there from the start, at time 0. At each floor the lift reaches, and at floor 0 at the start, first
everybody gets out who wants to that floor. Then those who wait there get in, the lowest number first, as
long as there is room, whether or not the lift is set to go their way. Getting out and in takes no time.
Then, if nobody waits or rides any more, the lift is done. Otherwise it keeps its direction if somebody
waits at a floor further on in this direction, or rides and wants to such a floor, also when it is full;
if not, it turns round. Then it moves one floor, which takes one unit of time.
Return the times at which people get out, added up over all people.
"""

from random import Random
from typing import Any


def next_step(calls: list[int], floor: int, step: int) -> int:
    """The direction, 1 or -1, in which the lift goes on."""
    for call in calls:
        if (call - floor) * step > 0:
            return step
    return -step


def solve(starts: list[int], targets: list[int], capacity: int) -> int:
    """Times of getting out."""
    waiting = list(range(len(starts)))
    riding: list[int] = []
    floor = 0
    step = 1
    now = 0
    total = 0
    while waiting or riding:
        for person in list(riding):
            if targets[person] == floor:
                riding.remove(person)
                total += now
        for person in list(waiting):
            if starts[person] == floor and len(riding) < capacity:
                waiting.remove(person)
                riding.append(person)
        calls = [starts[person] for person in waiting] + [targets[person] for person in riding]
        step = next_step(calls, floor, step)
        floor += step
        now += 1
    return total


def solve_by_stops(starts: list[int], targets: list[int], capacity: int) -> int:
    """Jump from one floor of interest to the next; everybody in the system lives through each jump."""
    people = [[start, target] for start, target in zip(starts, targets, strict=True)]
    aboard: list[list[int]] = []
    floor = total = 0
    is_up = True
    while people:
        people = [person for person in people if person not in aboard or person[1] != floor]
        aboard = [person for person in aboard if person[1] != floor]
        for person in people:
            if person[0] == floor and len(aboard) < capacity:
                aboard.append(person)
                person[0] = -1
        calls = {person[1] if person[0] < 0 else person[0] for person in people}
        above = [call for call in calls if call > floor]
        below = [call for call in calls if call < floor]
        if not above and not below:
            break
        is_up = bool(above) if is_up else not below
        stop = min(above) if is_up else max(below)
        total += len(people) * abs(stop - floor)
        floor = stop
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A low house, and a lift that is too small for all."""
    floors = rng.randint(3, 4) + level
    count = 3 + level
    starts = [rng.choice([0, rng.randint(0, floors)]) for _ in range(count)]
    targets = [rng.choice([f for f in range(floors + 1) if f != start]) for start in starts]
    return {"starts": starts, "targets": targets, "capacity": rng.randint(1, 3)}


TESTS = [
    ({"starts": [0], "targets": [3], "capacity": 1}, 3),
    ({"starts": [2], "targets": [0], "capacity": 1}, 4),
    ({"starts": [0, 0], "targets": [2, 1], "capacity": 1}, 7),
    ({"starts": [1, 3], "targets": [0, 4], "capacity": 2}, 12),
    ({"starts": [3, 1, 3], "targets": [1, 2, 0], "capacity": 1}, 17),
]
