"""Two teams of wrestlers stand in two queues; `left` and `right` list the strength of each wrestler (at
least 1) from the front of the queue to its end. A queue may be empty from the start. While both queues
have somebody, the two at the front wrestle. If they are equally strong, both go home. Otherwise the
weaker goes home, and the stronger loses half of the weaker one's strength, rounded up, and goes to the
end of its own queue.
Return the strengths that are left in the left queue, added up, minus those left in the right queue.
"""

from collections import deque
from random import Random
from typing import Any


def solve(left: list[int], right: list[int]) -> int:
    """What is left of the left team, minus what is left of the right one."""
    ours = deque(left)
    theirs = deque(right)
    while ours and theirs:
        a = ours.popleft()
        b = theirs.popleft()
        if a > b:
            ours.append(a - (b + 1) // 2)
        elif b > a:
            theirs.append(b - (a + 1) // 2)
    return sum(ours) - sum(theirs)


def solve_by_marks(left: list[int], right: list[int]) -> int:
    """Never take anybody out: walk along two growing lists."""
    teams = [list(left), list(right)]
    next_up = [0, 0]
    while next_up[0] < len(teams[0]) and next_up[1] < len(teams[1]):
        pair = [teams[side][next_up[side]] for side in (0, 1)]
        next_up = [next_up[0] + 1, next_up[1] + 1]
        if pair[0] != pair[1]:
            winner = pair.index(max(pair))
            loss = min(pair) // 2 + min(pair) % 2
            teams[winner].append(max(pair) - loss)
    rest = [sum(teams[side][next_up[side] :]) for side in (0, 1)]
    return rest[0] - rest[1]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Teams of about the same strength, with equal wrestlers now and then."""
    size = rng.randint(3 * (level + 1), 5 * (level + 1))
    top = rng.choice([6, 12, 20])
    left = [rng.randint(1, top) for _ in range(size)]
    right = [rng.randint(1, top) for _ in range(max(1, size + rng.randint(-1, 1)))]
    return {"left": left, "right": right}


TESTS = [
    ({"left": [5], "right": [5]}, 0),
    ({"left": [7], "right": [6]}, 4),
    ({"left": [4], "right": [3, 3]}, -2),
    ({"left": [2, 7], "right": [6, 6]}, -3),
    ({"left": [], "right": [4, 1]}, -5),
]
