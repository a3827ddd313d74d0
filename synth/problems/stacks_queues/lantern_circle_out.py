"""Children stand in a circle, each with a lantern on which a number is painted. The list `lanterns`
holds these numbers, each at least 1, in the order of the circle; after the last child comes the
first again. There is at least one child. They count out: the first count goes up to `first`, at
least 1, and begins with the first child of the list as one, going on around the circle in the order
of the list. The child at which a count ends leaves the circle, and the number on its lantern is what
the next count goes up to; that count begins with the next child still in the circle as one. Children
who left are not counted. This goes on until nobody is left. In which order do the children leave?
Give their places in the list, counted from 0."""

from collections import deque
from random import Random
from typing import Any


def solve(lanterns: list[int], first: int) -> list[int]:
    """Places of the children in the order in which they leave."""
    circle = deque(range(len(lanterns)))
    order = []
    count = first
    while circle:
        for _ in range(count - 1):
            circle.append(circle.popleft())
        child = circle.popleft()
        order.append(child)
        count = lanterns[child]
    return order


def solve_by_places(lanterns: list[int], first: int) -> list[int]:
    """Reckon the place at which each count ends."""
    left = list(range(len(lanterns)))
    order = []
    place = 0
    count = first
    while left:
        place = (place + count - 1) % len(left)
        order.append(left.pop(place))
        count = lanterns[order[-1]]
    return order


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Small numbers, so that most counts do not go around the circle."""
    size = rng.randint(5, 6) + 3 * level
    return {
        "lanterns": [rng.randint(1, 3 + level) for _ in range(size)],
        "first": rng.randint(1, 4 + 2 * level),
    }


TESTS = [
    ({"lanterns": [1, 2, 1], "first": 1}, [0, 1, 2]),
    ({"lanterns": [2, 1, 3], "first": 2}, [1, 2, 0]),
    ({"lanterns": [5], "first": 9}, [0]),
    ({"lanterns": [3, 1, 2, 1], "first": 3}, [2, 0, 1, 3]),
    ({"lanterns": [1, 1], "first": 4}, [1, 0]),
]
