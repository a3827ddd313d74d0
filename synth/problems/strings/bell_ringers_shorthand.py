"""Bell ringers write a melody as a text `melody` of small letters, one letter for each stroke of a
bell, at least one. To save paper they shorten it: where the same letter stands three or more times
in a row, this whole run is written as the letter, once, and behind it the number of its strokes as a
digit. Letters that come once, or twice in a row, are written as they are. No number above 9
is ever written: of more than nine equal strokes in a row, the first nine are written, with their
number, and then the rest of them as if it were a run of its own, divided again if need be. What is
the shortened text?"""

import re
from random import Random
from typing import Any


def write_run(letter: str, length: int) -> str:
    """One run of equal letters in shorthand."""
    text = ""
    while length > 9:
        text += letter + "9"
        length -= 9
    if length >= 3:
        return text + letter + str(length)
    return text + letter * length


def solve(melody: str) -> str:
    """The melody in shorthand."""
    text = ""
    letter = melody[0]
    length = 1
    for stroke in melody[1:]:
        if stroke == letter:
            length += 1
            continue
        text += write_run(letter, length)
        letter = stroke
        length = 1
    return text + write_run(letter, length)


def solve_by_pattern(melody: str) -> str:
    """Replace runs of three to nine equal letters from left to right."""
    return re.sub(r"(.)\1{2,8}", lambda run: run[1] + str(len(run[0])), melody)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Runs of one to four strokes, and now and then one of nine or more."""
    melody = ""
    for _ in range(rng.randint(3, 5) + 3 * level):
        length = rng.choice([1, 1, 2, 2, 3, 4])
        if rng.random() < 0.05:
            length = rng.randint(9, 10 + 5 * level)
        melody += rng.choice("abc") * length
    return {"melody": melody}


TESTS = [
    ({"melody": "aabbbc"}, "aab3c"),
    ({"melody": "a"}, "a"),
    ({"melody": "cccccccccc"}, "c9c"),
    ({"melody": "ddddddddd"}, "d9"),
    ({"melody": "eeeeeeeeeeeef"}, "e9e3f"),
    ({"melody": "abba"}, "abba"),
]
