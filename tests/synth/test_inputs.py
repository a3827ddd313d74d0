"""Inputs made after a problem's tests are like them, and new."""

from typing import Any

from synth.inputs import inputs

EXAMPLES: list[dict[str, Any]] = [
    {"starts": [1, 4, 9], "ends": [2, 6, 12], "limit": 2, "grid": ["ab", "ba"], "mode": "low"},
    {"starts": [0, 2], "ends": [3, 5], "limit": 1, "grid": ["aab", "bbb", "aba"], "mode": "low"},
    {"starts": [2, 3, 5, 8], "ends": [3, 9, 9, 9], "limit": 4, "grid": ["a"], "mode": "high"},
    {"starts": [7], "ends": [8], "limit": 1, "grid": ["bb"], "mode": "high"},
]


def test_what_the_examples_have_in_common_is_kept() -> None:
    made = inputs(EXAMPLES, 200, seed=0)
    assert len(made) == 200
    for one in made:
        starts, ends = one["starts"], one["ends"]
        assert len(starts) == len(ends)
        assert starts == sorted(set(starts))
        assert ends == sorted(ends)
        assert all(0 <= number <= 9 for number in starts)
        assert one["limit"] <= len(starts)
        assert len({len(row) for row in one["grid"]}) == 1
        assert set("".join(one["grid"])) <= {"a", "b"}
        assert one["mode"] in ("low", "high")


def test_the_examples_come_first_and_none_comes_twice() -> None:
    made = inputs(EXAMPLES, 50, seed=1)
    assert made[: len(EXAMPLES)] == EXAMPLES
    assert all(made.count(one) == 1 for one in made)


def test_a_seed_gives_the_same_inputs() -> None:
    assert inputs(EXAMPLES, 30, seed=3) == inputs(EXAMPLES, 30, seed=3)
    assert inputs(EXAMPLES, 30, seed=3) != inputs(EXAMPLES, 30, seed=4)


def test_fewer_come_where_there_are_no_more() -> None:
    assert inputs([{"is_open": True}], 10, seed=0) == [{"is_open": True}, {"is_open": False}]
    assert inputs([], 10, seed=0) == []
    assert inputs([{"nothing": []}], 10, seed=0) == [{"nothing": []}]
