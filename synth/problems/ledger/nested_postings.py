"""A ledger has one account with a balance of `start` (at least 0). Commands come in order: number i is
of kind `kinds[i]`. "post" adds `amounts[i]` to the balance (a negative amount takes off), but is refused
if the balance would go below 0. "begin" opens a draft; drafts may be opened inside drafts. "commit" closes
the draft that was opened last and keeps what was posted since it was opened; if that draft lies inside
another one, this is still undone when the outer one is undone. "rollback" closes the draft that was
opened last and sets the balance back to what it was when that draft was opened. "commit" and "rollback"
do nothing if no draft is open. For kinds other than "post" the amount is 0 and has no meaning. Drafts that
are still open after the last command are rolled back.
Return the balance at the end.
"""

from random import Random
from typing import Any


def solve(start: int, kinds: list[str], amounts: list[int]) -> int:
    """Balance at the end."""
    balance = start
    saved: list[int] = []
    for i in range(len(kinds)):
        if kinds[i] == "post":
            if balance + amounts[i] >= 0:
                balance += amounts[i]
        elif kinds[i] == "begin":
            saved.append(balance)
        elif saved:
            before = saved.pop()
            if kinds[i] == "rollback":
                balance = before
    if saved:
        balance = saved[0]
    return balance


def run(balance: int, commands: list[tuple[str, int]], is_draft: bool) -> int:
    """Work off commands (the next one last) up to the end of one draft, or of the ledger."""
    opening = balance
    while commands:
        kind, amount = commands.pop()
        if kind == "begin":
            balance = run(balance, commands, True)
        elif kind == "post":
            balance = balance + amount if balance + amount >= 0 else balance
        elif is_draft:
            return balance if kind == "commit" else opening
    return opening if is_draft else balance


def solve_by_nesting(start: int, kinds: list[str], amounts: list[int]) -> int:
    """A draft is a ledger of its own inside the outer one."""
    commands = list(zip(kinds, amounts, strict=True))
    return run(start, commands[::-1], False)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Postings up and down, among drafts that close more or less as often as they open."""
    count = rng.randint(7 * (level + 1), 10 * (level + 1))
    kinds = []
    amounts = []
    for _ in range(count):
        roll = rng.random()
        if roll < 0.55:
            kinds.append("post")
            amounts.append(rng.choice([-1, 1]) * rng.randint(1, 30))
        else:
            kinds.append("begin" if roll < 0.75 else "commit" if roll < 0.9 else "rollback")
            amounts.append(0)
    return {"start": rng.randint(0, 25), "kinds": kinds, "amounts": amounts}


TESTS = [
    ({"start": 10, "kinds": ["post"], "amounts": [-4]}, 6),
    ({"start": 10, "kinds": ["begin", "post", "rollback"], "amounts": [0, -4, 0]}, 10),
    ({"start": 5, "kinds": ["post", "begin", "post", "commit"], "amounts": [-6, 0, 3, 0]}, 8),
    (
        {
            "start": 10,
            "kinds": ["begin", "post", "begin", "post", "rollback", "post", "commit"],
            "amounts": [0, 5, 0, -12, 0, -15, 0],
        },
        0,
    ),
    (
        {
            "start": 7,
            "kinds": ["begin", "post", "begin", "post", "commit", "rollback", "rollback", "commit"],
            "amounts": [0, 2, 0, 4, 0, 0, 0, 0],
        },
        7,
    ),
    (
        {
            "start": 7,
            "kinds": ["commit", "begin", "post", "begin", "post"],
            "amounts": [0, 0, 9, 0, -3],
        },
        7,
    ),
]
