"""A greenhouse has `start` degrees and a heater that is off. `losses` says how many degrees it loses in
each minute (a negative loss warms it). Every minute, first the loss is taken off the temperature. Then
the control looks at the temperature: a heater that is off is switched on, with power 1, if the
temperature is below `low`; a heater that is on is switched off if the temperature is above `high` (which
is at least `low`), and otherwise its power rises by 1, but never above `boost` (at least 1). Last, if the
heater is on, it adds as many degrees as its power.
Return how many degrees the heater adds in all.
"""

from random import Random
from typing import Any


def solve(start: int, losses: list[int], low: int, high: int, boost: int) -> int:
    """Degrees that the heater adds."""
    temperature = start
    power = 0
    added = 0
    for loss in losses:
        temperature -= loss
        if power == 0:
            if temperature < low:
                power = 1
        elif temperature > high:
            power = 0
        else:
            power = min(boost, power + 1)
        temperature += power
        added += power
    return added


def solve_by_minutes(start: int, losses: list[int], low: int, high: int, boost: int) -> int:
    """The power follows from the minute in which the heater was switched on."""
    gains: list[int] = []
    on_since: int | None = None
    for minute in range(len(losses)):
        now = start - sum(losses[: minute + 1]) + sum(gains)
        if on_since is None and now < low:
            on_since = minute
        elif on_since is not None and now > high:
            on_since = None
        gains.append(0 if on_since is None else min(boost, minute - on_since + 1))
    return sum(gains)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A cold spell with some sun, so that the heater goes on and off."""
    minutes = rng.randint(6 * (level + 1), 9 * (level + 1))
    low = rng.randint(8, 16)
    losses = [rng.choice([-4, -1, 0, 1, 2, 3, 4]) for _ in range(minutes)]
    return {
        "start": low + rng.randint(-2, 4),
        "losses": losses,
        "low": low,
        "high": low + rng.randint(0, 4),
        "boost": rng.randint(2, 6),
    }


TESTS = [
    ({"start": 20, "losses": [1, 1], "low": 15, "high": 18, "boost": 3}, 0),
    ({"start": 10, "losses": [1, 1, 1], "low": 10, "high": 12, "boost": 2}, 5),
    ({"start": 10, "losses": [2, 0, -5, 0, 9], "low": 10, "high": 11, "boost": 3}, 4),
    ({"start": 10, "losses": [0, 1], "low": 10, "high": 10, "boost": 5}, 1),
    ({"start": 5, "losses": [1, -2, 0], "low": 5, "high": 7, "boost": 4}, 3),
]
