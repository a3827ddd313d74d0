"""What a text gives away: written in any way, and not by chance."""

from typing import Any

import pytest

from synth.inside.revealed import answer_is_told, is_shown, whole_input


@pytest.mark.parametrize(
    ("value", "text", "is_in"),
    [
        ([3, 1, 2], "the cards 3 1 2", True),
        ([3, 1, 2], "[3,1,2]", True),
        ([3, 1, 2], "13, 1, 2", False),
        ([3, 1, 2], "3, 1, 12", False),
        ([3, 1, 2], "3, 9, 1, 2", False),
        ([1.0, True, None], "(1, True, None)", True),
        ({"a": [1], "b": 2}, '{"a": [1], "b": 2}', True),
        ([["ab", "c"], []], "[['ab', 'c'], []]", True),
        ([-1], "1", False),
        ("ab cd", 'It is "ab cd".', True),
        ("ab", "cab", False),
        ("(()", "of (() two", True),
        ("(()", "of () two", False),
        ([], "anything", True),
        (7, "reward=0; 7", True),
        (7, "reward=0; 17", False),
    ],
)
def test_values_are_found_however_they_are_written(value: Any, text: str, is_in: bool) -> None:
    assert is_shown(value, text) is is_in


def test_a_whole_input_is_every_part_and_more_than_numbers() -> None:
    assert whole_input({"cards": [4, 2, 9], "limit": 3}, "4, 2, 9; limit 3")
    assert not whole_input({"cards": [4, 2, 9], "limit": 3}, "4, 2, 9; limit 5")
    assert not whole_input({"limit": 3}, "limit 3")
    assert not whole_input({"cards": [4, 2]}, "4 and 2")
    assert whole_input({"word": "abc"}, "it is 'abc'")
    assert not whole_input(None, "4, 2, 9")


def test_answers_in_prompts_are_those_that_chance_does_not_put_there() -> None:
    assert answer_is_told([5, 1, 8], "such as 5, 1, 8.")
    assert not answer_is_told(5, "such as 5.")
    assert not answer_is_told([5, 1], "such as 5, 1.")
    assert answer_is_told("ab-cd-ef", "such as ab-cd-ef.")
    assert not answer_is_told("impossible", 'or "impossible" where there is none')
