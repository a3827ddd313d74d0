"""A bank decides on card payments in order: payment number i comes in minute `times[i]` (never earlier
than the one before), with the card named `cards[i]`, over `amounts[i]` coins (at least 1). A payment is
approved if the approved payments with the same card that came less than `window` minutes before it
(those of the same minute included), together with this one, are not above `limit` coins; otherwise it is
refused. A card that is refused twice in a row, with no approved payment of that card in between, is
blocked: all its later payments are refused.
Return the approved amounts of all cards, added up.
"""

from collections import deque
from random import Random
from typing import Any


def solve(times: list[int], cards: list[str], amounts: list[int], window: int, limit: int) -> int:
    """Coins approved."""
    recent: dict[str, deque[int]] = {}
    spent: dict[str, int] = {}
    refusals: dict[str, int] = {}
    approved = 0
    for i in range(len(times)):
        card = cards[i]
        if card not in recent:
            recent[card] = deque()
            spent[card] = 0
            refusals[card] = 0
        if refusals[card] == 2:
            continue
        while recent[card] and times[i] - times[recent[card][0]] >= window:
            spent[card] -= amounts[recent[card].popleft()]
        if spent[card] + amounts[i] <= limit:
            recent[card].append(i)
            spent[card] += amounts[i]
            approved += amounts[i]
            refusals[card] = 0
        else:
            refusals[card] += 1
    return approved


def solve_by_card(
    times: list[int], cards: list[str], amounts: list[int], window: int, limit: int
) -> int:
    """Take one card after the other, and look back over all its payments."""
    total = 0
    for card in set(cards):
        mine = [i for i in range(len(cards)) if cards[i] == card]
        verdicts: list[bool] = []
        for now in mine:
            if verdicts[-2:] == [False, False]:
                break
            counted = amounts[now]
            for before, good in zip(mine, verdicts, strict=False):
                if good and times[before] > times[now] - window:
                    counted += amounts[before]
            verdicts.append(counted <= limit)
        total += sum(amounts[i] for i, good in zip(mine, verdicts, strict=False) if good)
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Payments close enough that limits bite, with some in the same minute."""
    count = rng.randint(6 * (level + 1), 9 * (level + 1))
    names = ["amber", "coral", "olive"][: rng.randint(2, 3)]
    times = []
    now = rng.randint(0, 5)
    for _ in range(count):
        now += rng.choice([0, 1, 2, 3, 5])
        times.append(now)
    return {
        "times": times,
        "cards": [rng.choice(names) for _ in range(count)],
        "amounts": [rng.randint(1, 12) for _ in range(count)],
        "window": rng.randint(5, 9),
        "limit": rng.randint(10, 18),
    }


TESTS = [
    ({"times": [0, 5], "cards": ["a", "a"], "amounts": [6, 6], "window": 10, "limit": 10}, 6),
    ({"times": [0, 10], "cards": ["a", "a"], "amounts": [6, 6], "window": 10, "limit": 10}, 12),
    (
        {
            "times": [1, 1, 2],
            "cards": ["a", "b", "a"],
            "amounts": [7, 7, 3],
            "window": 5,
            "limit": 10,
        },
        17,
    ),
    (
        {
            "times": [0, 1, 2, 20],
            "cards": ["a", "a", "a", "a"],
            "amounts": [8, 5, 4, 1],
            "window": 5,
            "limit": 10,
        },
        8,
    ),
    (
        {
            "times": [0, 1, 2, 3, 9],
            "cards": ["a", "a", "a", "a", "a"],
            "amounts": [8, 5, 2, 1, 10],
            "window": 5,
            "limit": 10,
        },
        20,
    ),
    (
        {
            "times": [20, 22, 23],
            "cards": ["a", "a", "a"],
            "amounts": [11, 6, 5],
            "window": 5,
            "limit": 10,
        },
        6,
    ),
]
