"""A diary is kept in a secret writing, and the text `secret` is one of its pages: small letters a to
z, spaces and hyphens, possibly empty. To write it, each letter of the plain text was moved onward in
the alphabet, by as many places as the plain letter before it in the text stands after a: 0 places
if that was an a, 25 if it was a z. The first letter was moved as if the plain letter before it were
the letter `key`. After z the alphabet goes on with a. Spaces and hyphens were written as they are
and passed over when the letter before is looked for, but a hyphen sets the key anew: the next letter
after it was moved as if the letter before were `key`. What is the plain text?"""

from random import Random
from typing import Any

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def solve(secret: str, key: str) -> str:
    """The plain text of a page."""
    plain = ""
    before = key
    for sign in secret:
        if sign == "-":
            before = key
        if sign in " -":
            plain += sign
            continue
        place = ALPHABET.index(sign) - ALPHABET.index(before)
        before = ALPHABET[place % 26]
        plain += before
    return plain


def write_secret(plain: str, key: str) -> str:
    """The page that the writer makes of a plain text."""
    secret = ""
    for part in plain.split("-"):
        shift = ord(key) - ord("a")
        written = ""
        for sign in part:
            if sign == " ":
                written += sign
                continue
            place = ord(sign) - ord("a")
            written += chr((place + shift) % 26 + ord("a"))
            shift = place
        secret += "-" + written
    return secret[1:]


def solve_by_writing(secret: str, key: str) -> str:
    """Find the plain text sign by sign, by writing it again."""
    plain = ""
    for end in range(1, len(secret) + 1):
        for sign in ALPHABET + " -":
            if write_secret(plain + sign, key) == secret[:end]:
                plain += sign
                break
    return plain


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Words of any letters; about one gap in three between them is a hyphen."""
    plain = ""
    for number in range(2 + level):
        if number > 0:
            plain += "-" if rng.random() < 0.35 else " "
        plain += "".join(rng.choice(ALPHABET) for _ in range(rng.randint(2, 4) + level))
    key = rng.choice(ALPHABET)
    return {"secret": write_secret(plain, key), "key": key}


TESTS = [
    ({"secret": "", "key": "q"}, ""),
    ({"secret": "bcd", "key": "a"}, "bbc"),
    ({"secret": "d", "key": "c"}, "b"),
    ({"secret": "a", "key": "b"}, "z"),
    ({"secret": "c d-d", "key": "b"}, "b c-c"),
    ({"secret": "-b -", "key": "a"}, "-b -"),
]
