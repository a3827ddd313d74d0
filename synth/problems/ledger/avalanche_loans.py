"""Somebody has loans, numbered from 0: loan k with a debt of `debts[k]` coins (at least 1) and a rate of
`rates[k]`. In each month, for which `payments` lists what can be paid back (at least 0), first every loan
is charged interest, which is added to its debt: the debt times the rate divided by 1000, rounded down to
whole coins. Then the payment goes to the loan with the highest rate among those with a debt above 0; of
equal rates the one with the larger debt at that moment comes first, and of equal debts the lower number.
If that loan is paid off, the rest of the payment goes to the next loan by the same rule, and so on. What
is left when all loans are paid off is not used, nor kept for later months.
Return the interest charged on all loans in all months.
"""

from random import Random
from typing import Any


def next_loan(debt: list[int], rates: list[int]) -> int:
    """The loan that is paid back first; -1 if all are paid off."""
    best = -1
    for k in range(len(debt)):
        if debt[k] == 0:
            continue
        if best < 0 or (rates[k], debt[k]) > (rates[best], debt[best]):
            best = k
    return best


def solve(debts: list[int], rates: list[int], payments: list[int]) -> int:
    """Interest charged."""
    debt = list(debts)
    interest = 0
    for payment in payments:
        for k in range(len(debt)):
            charged = debt[k] * rates[k] // 1000
            debt[k] += charged
            interest += charged
        left = payment
        while left > 0:
            best = next_loan(debt, rates)
            if best < 0:
                break
            paid = min(left, debt[best])
            debt[best] -= paid
            left -= paid
    return interest


def solve_by_sorting(debts: list[int], rates: list[int], payments: list[int]) -> int:
    """Put the loans in order each month and walk along; interest is what was paid and is owed on top."""
    owed = list(debts)
    paid_back = 0
    for payment in payments:
        owed = [debt + debt * rate // 1000 for debt, rate in zip(owed, rates, strict=True)]
        for k in sorted(range(len(owed)), key=lambda k: (-rates[k], -owed[k], k)):
            part = payment if payment < owed[k] else owed[k]
            owed[k] -= part
            payment -= part
            paid_back += part
    return sum(owed) + paid_back - sum(debts)


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Two to four loans, some with the same rate, and payments that clear some of them."""
    loans = rng.randint(2, 3) + level // 2
    months = rng.randint(3, 4) * (level + 1)
    rates = [rng.choice([10, 20, 20, 35, 60]) for _ in range(loans)]
    return {
        "debts": [rng.randint(5, 60) * 10 for _ in range(loans)],
        "rates": rates,
        "payments": [rng.choice([0, 50, 120, 200, 330]) for _ in range(months)],
    }


TESTS = [
    ({"debts": [100], "rates": [10], "payments": [50]}, 1),
    ({"debts": [100], "rates": [10], "payments": [50, 51, 10]}, 1),
    ({"debts": [200, 1000], "rates": [50, 20], "payments": [220, 100]}, 50),
    ({"debts": [300, 500], "rates": [20, 20], "payments": [100, 0]}, 30),
    ({"debts": [40, 30], "rates": [100, 90], "payments": [500, 500]}, 6),
]
