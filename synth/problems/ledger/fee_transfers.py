"""A bank keeps accounts, numbered from 0, with the balances `balances`. `transfers` lists transfers in
order, each as [sender, receiver, amount], where sender and receiver are different accounts and the
amount is at least 1. The sender pays the amount and on top of it a fee to the bank: 1 coin for every
`per` coins of the amount, a last part of fewer than `per` coins also costing 1. A transfer is refused if
paying amount and fee would leave the sender with less than minus `limit` coins (`limit` is at least 0).
For a refused transfer the sender pays a penalty of 1 coin to the bank, but only if its balance is above
0. An account that was refused as the sender for the `strikes`-th time (at least 1) is closed right after
that, penalty included: later transfers from it or to it do not happen, and cost nothing.
Return how many coins the bank takes in fees and penalties.
"""

from random import Random
from typing import Any


def solve(
    balances: list[int], transfers: list[list[int]], per: int, limit: int, strikes: int
) -> int:
    """Fees and penalties."""
    balance = list(balances)
    refused = [0] * len(balances)
    income = 0
    for sender, receiver, amount in transfers:
        if refused[sender] >= strikes or refused[receiver] >= strikes:
            continue
        fee = (amount + per - 1) // per
        if balance[sender] - amount - fee >= -limit:
            balance[sender] -= amount + fee
            balance[receiver] += amount
            income += fee
        else:
            if balance[sender] > 0:
                balance[sender] -= 1
                income += 1
            refused[sender] += 1
    return income


def solve_by_money_left(
    balances: list[int], transfers: list[list[int]], per: int, limit: int, strikes: int
) -> int:
    """What the accounts have lost together is what the bank has."""
    accounts = dict(enumerate(balances))
    lives = dict.fromkeys(accounts, strikes)
    for sender, receiver, amount in transfers:
        if not (lives[sender] and lives[receiver]):
            continue
        fee = len(range(0, amount, per))
        if accounts[sender] + limit < amount + fee:
            lives[sender] -= 1
            accounts[sender] = min(accounts[sender], max(accounts[sender] - 1, 0))
            continue
        accounts[sender] -= amount + fee
        accounts[receiver] += amount
    return sum(balances) - sum(accounts.values())


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Few accounts with too little money for all that they send."""
    accounts = rng.randint(3, 4 + level)
    transfers = []
    for _ in range(rng.randint(6 * (level + 1), 9 * (level + 1))):
        sender, receiver = rng.sample(range(accounts), 2)
        transfers.append([sender, receiver, rng.randint(1, 40)])
    return {
        "balances": [rng.choice([0, 10, 25, 40, 60]) for _ in range(accounts)],
        "transfers": transfers,
        "per": rng.randint(3, 9),
        "limit": rng.choice([0, 5, 15]),
        "strikes": rng.randint(1, 3),
    }


TESTS = [
    (
        {"balances": [100, 0], "transfers": [[0, 1, 30]], "per": 10, "limit": 0, "strikes": 2},
        3,
    ),
    (
        {"balances": [100, 0], "transfers": [[0, 1, 100]], "per": 10, "limit": 0, "strikes": 2},
        1,
    ),
    (
        {
            "balances": [10, 0],
            "transfers": [[0, 1, 20], [0, 1, 10]],
            "per": 10,
            "limit": 20,
            "strikes": 2,
        },
        2,
    ),
    (
        {
            "balances": [5, 50],
            "transfers": [[0, 1, 9], [1, 0, 20], [0, 1, 3]],
            "per": 10,
            "limit": 0,
            "strikes": 1,
        },
        1,
    ),
    (
        {
            "balances": [30, 30, 0],
            "transfers": [[0, 1, 14], [1, 2, 44], [1, 2, 42], [1, 0, 1], [2, 1, 5], [2, 0, 15]],
            "per": 7,
            "limit": 5,
            "strikes": 2,
        },
        12,
    ),
    (
        {
            "balances": [0, 9],
            "transfers": [[0, 1, 5], [1, 0, 7], [1, 0, 5]],
            "per": 2,
            "limit": 0,
            "strikes": 3,
        },
        4,
    ),
]
