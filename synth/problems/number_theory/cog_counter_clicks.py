"""A counter is made of cogs in a row. `teeth` gives for each cog, from the first to the last, how
many teeth it has, at least 2; a cog shows a number from 0 to one less than its teeth, and `shown`
gives what each shows now. A click turns the last cog by one tooth, so that it shows one more. When
a cog would show as many as it has teeth, it shows 0 instead, and the cog just before it is turned
by one tooth in the same way; when this happens to the first cog, nothing else is turned. The
counter gets `clicks` clicks, 0 or more. Answer what the cogs show then, from the first to the last.
"""

from random import Random
from typing import Any


def solve(teeth: list[int], shown: list[int], clicks: int) -> list[int]:
    """What the cogs show after the clicks."""
    after = list(shown)
    carried = clicks
    cog = len(teeth) - 1
    while cog >= 0 and carried > 0:
        turned = after[cog] + carried
        after[cog] = turned % teeth[cog]
        carried = turned // teeth[cog]
        cog -= 1
    return after


def solve_by_one_number(teeth: list[int], shown: list[int], clicks: int) -> list[int]:
    """Read the counter as one number, add, and write it anew."""
    number, size = 0, 1
    for cog_teeth, digit in zip(teeth, shown, strict=True):
        number = number * cog_teeth + digit
        size *= cog_teeth
    number = (number + clicks) % size
    after = []
    for cog_teeth in teeth:
        size //= cog_teeth
        after.append(number // size)
        number %= size
    return after


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Clicks from a few up to more than the whole counter holds."""
    size = rng.randint(5, 8) + 4 * level
    teeth = [rng.randint(2, 9) for _ in range(size)]
    shown = [rng.randrange(count) for count in teeth]
    holds = 1
    for count in teeth:
        holds *= count
    kind = rng.random()
    if kind < 0.1:
        clicks = rng.randint(0, 12)
    elif kind < 0.85:
        clicks = rng.randint(holds // 20, holds)
    else:
        clicks = rng.randint(holds, 3 * holds)
    return {"teeth": teeth, "shown": shown, "clicks": clicks}


TESTS = [
    ({"teeth": [3, 4, 5], "shown": [1, 3, 3], "clicks": 2}, [2, 0, 0]),
    ({"teeth": [2, 2], "shown": [1, 1], "clicks": 1}, [0, 0]),
    ({"teeth": [7], "shown": [5], "clicks": 16}, [0]),
    ({"teeth": [6, 3], "shown": [4, 2], "clicks": 0}, [4, 2]),
    ({"teeth": [4, 2, 6], "shown": [0, 1, 5], "clicks": 30}, [3, 0, 5]),
]
