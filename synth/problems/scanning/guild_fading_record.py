"""A guild of archers holds one contest a year. The list `scores` holds the best score of each year,
in order, 0 or more and at least one of them. The first year's score always sets the guild's record.
At the end of every year the standing record fades: it is lowered by `fade`, which is 0 or more, and
it may become negative. A later year's score that is greater than the record as it then stands sets
the new record; an equal or smaller one does not, and the record fades on. What is the sum of the
scores that set a record, the first one among them?"""

from random import Random
from typing import Any


def solve(scores: list[int], fade: int) -> int:
    """Sum of the scores that set a record."""
    record = scores[0]
    total = scores[0]
    for score in scores[1:]:
        record -= fade
        if score > record:
            record = score
            total += score
    return total


def solve_by_comparing(scores: list[int], fade: int) -> int:
    """A score sets a record if it beats all earlier ones, each faded since its year."""
    total = 0
    for year, score in enumerate(scores):
        if all(score > scores[past] - fade * (year - past) for past in range(year)):
            total += score
    return total


def generate(rng: Random, level: int) -> dict[str, Any]:
    """Scores of which some just reach the faded record, or just beat it."""
    fade = rng.randint(0, 12)
    record = rng.randint(20, 99)
    scores = [record]
    for _ in range(rng.randint(5, 8) + 6 * level):
        record -= fade
        score = rng.randint(0, 99)
        if rng.random() < 0.25:
            score = max(0, record + rng.randint(0, 1))
        record = max(record, score)
        scores.append(score)
    return {"scores": scores, "fade": fade}


TESTS = [
    ({"scores": [50, 45, 48], "fade": 5}, 98),
    ({"scores": [7], "fade": 3}, 7),
    ({"scores": [30, 30, 31], "fade": 0}, 61),
    ({"scores": [20, 0, 0, 0], "fade": 10}, 20),
    ({"scores": [40, 10, 25, 22], "fade": 10}, 87),
]
