"""A knitting pattern is a text `pattern`, possibly empty. A small letter is one stitch of that kind.
A whole number in decimal digits followed by a part in square brackets means that the part in the
brackets is knitted so many times, one after another; 0 times means that it is left out. The part in
brackets is itself a pattern, so it may hold numbers with brackets again, and may be empty. Numbers
stand only directly before an opening bracket, every opening bracket has a number before it, and all
brackets are closed. Which stitches are knitted, in order, as a text of letters?"""

from random import Random
from typing import Any


def solve(pattern: str) -> str:
    """The stitches of a pattern."""
    stitches = ""
    times = 0
    waiting: list[tuple[str, int]] = []
    for sign in pattern:
        if sign.isdigit():
            times = 10 * times + int(sign)
        elif sign == "[":
            waiting.append((stitches, times))
            stitches = ""
            times = 0
        elif sign == "]":
            before, repeats = waiting.pop()
            stitches = before + stitches * repeats
        else:
            stitches += sign
    return stitches


def solve_by_parts(pattern: str) -> str:
    """Knit the first part in brackets by itself, then the rest."""
    start = pattern.find("[")
    if start < 0:
        return pattern
    depth = 1
    end = start
    while depth > 0:
        end += 1
        depth += {"[": 1, "]": -1}.get(pattern[end], 0)
    letters = pattern[:start].rstrip("0123456789")
    part = solve_by_parts(pattern[start + 1 : end])
    return letters + int(pattern[len(letters) : start]) * part + solve_by_parts(pattern[end + 1 :])


def draw_pattern(rng: Random, size: int, depth: int) -> str:
    """A pattern of about so many signs."""
    pattern = ""
    while len(pattern) < size:
        rest = size - len(pattern)
        if depth > 0 and rest >= 4 and rng.random() < 0.5:
            inside = draw_pattern(rng, rng.randint(0, rest - 3), depth - 1)
            pattern += f"{rng.choice([0, 1, 2, 2, 3, 3, 10])}[{inside}]"
        else:
            pattern += rng.choice("kpys")
    return pattern


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Patterns of up to two brackets in each other, more at greater levels, and not too long to knit."""
    while True:
        pattern = draw_pattern(rng, rng.randint(7, 10) + 5 * level, min(2 + level, 4))
        if 3 <= len(solve(pattern)) <= 40 + 20 * level:
            return {"pattern": pattern}


TESTS = [
    ({"pattern": "k2[py]s"}, "kpypys"),
    ({"pattern": ""}, ""),
    ({"pattern": "0[kk]p"}, "p"),
    ({"pattern": "2[k3[p]]"}, "kpppkppp"),
    ({"pattern": "10[k]"}, "kkkkkkkkkk"),
    ({"pattern": "2[]y"}, "y"),
]
