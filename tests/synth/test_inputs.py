"""Inputs made after a problem's tests are like them, and new."""

from typing import Any

import pytest

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


def test_arguments_that_are_none_or_left_out_are_so_in_what_is_made() -> None:
    examples = [
        {"a": [1, 2, 3], "k": 1, "b": [4, 4, 4]},
        {"a": [4, 5], "k": None, "b": None},
        {"a": [6]},
    ]
    for order in (examples, examples[::-1]):
        made = inputs(order, 60, seed=1)
        assert len(made) == 60
        assert {frozenset(one) for one in made} == {frozenset("abk"), frozenset("a")}
        assert {one.get("k") for one in made} == {None, 1}


def test_equal_lengths_hold_where_items_may_not_repeat() -> None:
    examples = [{"a": [1, 2, 3], "b": [9, 9, 8]}, {"a": [3, 1], "b": [7, 7]}]
    made = inputs(examples, 40, seed=0)
    assert len(made) > 10
    assert all(len(one["a"]) == len(one["b"]) == len(set(one["a"])) for one in made)


def test_small_fractions_stay_within_their_range() -> None:
    examples = [{"x": 0.0001}, {"x": 0.0004}]
    made = [one["x"] for one in inputs(examples, 20, seed=0)]
    assert len(made) > 2 and all(0.0001 <= x <= 0.0004 for x in made)


@pytest.mark.timeout(20)
def test_long_examples_take_no_time_that_grows_with_their_square() -> None:
    example = {"a": list(range(0, 80_000, 2)), "k": 7}
    assert len(inputs([example], 3, seed=0)) == 3
