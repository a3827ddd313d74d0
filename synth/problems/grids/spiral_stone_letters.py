"""A stone bears letters in rows and columns; `stone` has one text per row, all equally long and not
empty. The letters are to be read in a spiral: from the first letter of the first row along this row
to its end, then down the last column, back along the last row, up the first column, and so on
inwards, until each letter was read exactly once. A scribe copies the letters that are read as
number `every`, as number two times `every`, three times `every` and so forth, where the letter read
first is number 1. Answer the copied letters as one text, in the order of reading; it is empty if
there are fewer than `every` letters.
"""

from random import Random
from typing import Any


def solve(stone: list[str], every: int) -> str:
    """The letters that the scribe copies."""
    top, bottom = 0, len(stone) - 1
    left, right = 0, len(stone[0]) - 1
    letters = ""
    while top <= bottom and left <= right:
        for column in range(left, right + 1):
            letters += stone[top][column]
        for row in range(top + 1, bottom + 1):
            letters += stone[row][right]
        if top < bottom and left < right:
            for column in range(right - 1, left - 1, -1):
                letters += stone[bottom][column]
            for row in range(bottom - 1, top, -1):
                letters += stone[row][left]
        top += 1
        bottom -= 1
        left += 1
        right -= 1
    copied = ""
    for number in range(every, len(letters) + 1, every):
        copied += letters[number - 1]
    return copied


def solve_by_turning(stone: list[str], every: int) -> str:
    """Read the first row, turn the rest of the stone to the left, and again."""
    text = ""
    while stone:
        text += stone[0]
        stone = ["".join(column) for column in zip(*stone[1:], strict=True)][::-1]
    return text[every - 1 :: every]


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Stones of all shapes, single rows and columns among them; rarely every is too great."""
    rows, columns = rng.randint(2, 4) + level, rng.randint(2, 4) + level
    if rng.random() < 0.1:
        rows, columns = rng.choice([(1, 6 + level), (6 + level, 1)])
    stone = ["".join(rng.choice("aehilnorstuwy") for _ in range(columns)) for _ in range(rows)]
    every = rng.randint(1, 3)
    if rng.random() < 0.05:
        every = rows * columns + rng.randint(1, 3)
    return {"stone": stone, "every": every}


TESTS = [
    ({"stone": ["abc", "hid", "gfe"], "every": 1}, "abcdefghi"),
    ({"stone": ["abcd", "hgfe"], "every": 3}, "cf"),
    ({"stone": ["abc", "lmd", "kne", "jof", "ihg"], "every": 4}, "dhl"),
    ({"stone": ["r", "u", "n", "e"], "every": 2}, "ue"),
    ({"stone": ["no"], "every": 3}, ""),
    ({"stone": ["ab", "dc"], "every": 4}, "d"),
]
