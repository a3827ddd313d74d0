"""A goldsmith engraves the letters of the text `letters`, small letters and at least one, around a
ring, so that after the last letter the first follows again. An inventory lists each ring under the
text that comes first in alphabetical order among all texts one can read off it by beginning at some
letter and going once around in the same direction. What is this text, followed by a hyphen and by
the place in `letters`, counted from 0, of the letter with which one begins to read it? If it can be
read from several places, give the smallest place."""

from random import Random
from typing import Any


def solve(letters: str) -> str:
    """Smallest reading of the ring and the first place where it begins."""
    size = len(letters)
    best = 0
    rival = 1
    matched = 0
    while rival < size and matched < size:
        ours = letters[(best + matched) % size]
        theirs = letters[(rival + matched) % size]
        if ours == theirs:
            matched += 1
            continue
        if ours > theirs:
            best = max(rival, best + matched + 1)
            rival = best + 1
        else:
            rival += matched + 1
        matched = 0
    return f"{letters[best:]}{letters[:best]}-{best}"


def solve_by_readings(letters: str) -> str:
    """Compare all readings."""
    readings = [(letters[place:] + letters[:place], place) for place in range(len(letters))]
    text, place = min(readings)
    return f"{text}-{place}"


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Few different letters; some rings repeat a part."""
    size = rng.randint(5, 7) + 5 * level
    letters = "".join(rng.choice("ano") for _ in range(size))
    if rng.random() < 0.15:
        letters = letters[: size // 2] * 2
    return {"letters": letters}


TESTS = [
    ({"letters": "rosa"}, "aros-3"),
    ({"letters": "noon"}, "nnoo-3"),
    ({"letters": "z"}, "z-0"),
    ({"letters": "baba"}, "abab-1"),
    ({"letters": "anaan"}, "aanan-2"),
    ({"letters": "ooo"}, "ooo-0"),
]
