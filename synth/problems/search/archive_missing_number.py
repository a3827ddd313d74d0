"""The folders of an archive are numbered with positive whole numbers, but some folders are lost. The
list `numbers` holds the numbers of those still there, in ascending order, each once, at least one of
them. Folders were numbered without gaps from the first number in the list on and without end, so
every whole number greater than the first one that is not in the list is lost; this includes all
numbers after the last one in the list. Which number has the lost folder that comes as the `rank`-th
in ascending order, where `rank` 1 is the lost folder with the smallest number?"""

from random import Random
from typing import Any


def solve(numbers: list[int], rank: int) -> int:
    """Number of the lost folder with this rank."""
    low = 0
    high = len(numbers)
    while low < high:
        middle = (low + high) // 2
        num_lost = numbers[middle] - numbers[0] - middle
        if num_lost < rank:
            low = middle + 1
        else:
            high = middle
    return numbers[0] + low - 1 + rank


def solve_by_counting(numbers: list[int], rank: int) -> int:
    """Count upwards from the first number."""
    present = set(numbers)
    number = numbers[0]
    while rank > 0:
        number += 1
        if number not in present:
            rank -= 1
    return number


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Now and then the lost folder is after the last one that is still there."""
    size = min(rng.randint(30, 120) * 8**level, 1500)
    first = rng.randint(1, 50)
    span = size + rng.randint(size // 3, size)
    numbers = [first, *sorted(rng.sample(range(first + 1, first + span), size - 1))]
    num_lost = numbers[-1] - first + 1 - size
    return {"numbers": numbers, "rank": rng.randint(1, num_lost + num_lost // 8 + 1)}


TESTS = [
    ({"numbers": [4, 5, 8, 9, 12], "rank": 3}, 10),
    ({"numbers": [4, 5, 8, 9, 12], "rank": 4}, 11),
    ({"numbers": [4, 5, 8, 9, 12], "rank": 6}, 14),
    ({"numbers": [7], "rank": 2}, 9),
    ({"numbers": [1, 2, 3], "rank": 1}, 4),
    ({"numbers": [2, 9], "rank": 1}, 3),
]
