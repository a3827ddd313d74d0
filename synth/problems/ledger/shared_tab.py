"""`people` friends, numbered from 0, keep a tab; everybody starts with a balance of 0. Expenses come in
order: number i of `amounts[i]` cents (at least 1) is paid by friend `payers[i]` for the friends listed in
`groups[i]`, who are different and at least one; the payer may be among them or not. The amount is added to
the payer's balance, and shared among the group: everyone in it is charged the same whole number of
cents, as large as possible, and the cents that remain are charged, one each, to those in the group with
the highest balances before this expense (of equal ones the lowest numbers first). An expense is refused,
and changes nothing, if after it somebody in its group would have a balance below minus `limit`.
Return how many cents those with a balance above 0 are owed at the end, all together.
"""

from random import Random
from typing import Any


def solve(
    people: int, payers: list[int], amounts: list[int], groups: list[list[int]], limit: int
) -> int:
    """Cents owed at the end."""
    balance = [0] * people
    for i in range(len(payers)):
        group = sorted(groups[i], key=lambda friend: (-balance[friend], friend))
        share = amounts[i] // len(group)
        rest = amounts[i] % len(group)
        after = list(balance)
        after[payers[i]] += amounts[i]
        for friend in group:
            after[friend] -= share
            if rest > 0:
                after[friend] -= 1
                rest -= 1
        is_fine = True
        for friend in group:
            if after[friend] < -limit:
                is_fine = False
        if is_fine:
            balance = after
    owed = 0
    for amount in balance:
        if amount > 0:
            owed += amount
    return owed


def charge(amount: int, group: list[int], standing: dict[int, int]) -> dict[int, int]:
    """What each in the group is charged, the odd cents one at a time."""
    charges = {friend: amount // len(group) for friend in group}
    open_to = sorted(group)
    for _ in range(amount - sum(charges.values())):
        richest = max(open_to, key=lambda friend: standing[friend])
        charges[richest] += 1
        open_to.remove(richest)
    return charges


def solve_by_sides(
    people: int, payers: list[int], amounts: list[int], groups: list[list[int]], limit: int
) -> int:
    """Keep what everyone paid apart from what everyone was charged."""
    paid = [0] * people
    charged = [0] * people
    for payer, amount, group in zip(payers, amounts, groups, strict=True):
        standing = {friend: paid[friend] - charged[friend] for friend in group}
        charges = charge(amount, group, standing)
        if payer in standing:
            standing[payer] += amount
        if min(standing[friend] - charges[friend] for friend in group) >= -limit:
            paid[payer] += amount
            for friend in group:
                charged[friend] += charges[friend]
    return sum(abs(paid[friend] - charged[friend]) for friend in range(people)) // 2


def generate(rng: Random, level: int) -> dict[str, Any]:
    """A few friends and a limit that some expenses would break."""
    people = rng.randint(3, 4 + level)
    count = rng.randint(5 * (level + 1), 7 * (level + 1))
    return {
        "people": people,
        "payers": [rng.randrange(people) for _ in range(count)],
        "amounts": [rng.randint(1, 60) for _ in range(count)],
        "groups": [rng.sample(range(people), rng.randint(1, people)) for _ in range(count)],
        "limit": rng.randint(20, 45),
    }


TESTS = [
    ({"people": 2, "payers": [0], "amounts": [10], "groups": [[0, 1]], "limit": 100}, 5),
    (
        {
            "people": 3,
            "payers": [2, 1],
            "amounts": [11, 4],
            "groups": [[0, 1, 2], [2]],
            "limit": 100,
        },
        4,
    ),
    ({"people": 2, "payers": [0, 1], "amounts": [4, 5], "groups": [[1], [0, 1]], "limit": 9}, 1),
    (
        {"people": 2, "payers": [0, 1], "amounts": [12, 6], "groups": [[0, 1], [0, 1]], "limit": 5},
        3,
    ),
    (
        {
            "people": 3,
            "payers": [2, 0, 1],
            "amounts": [7, 9, 2],
            "groups": [[0, 1], [0, 1, 2], [2]],
            "limit": 6,
        },
        4,
    ),
]
