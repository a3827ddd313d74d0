"""What statements give away, and which answers are the same."""

from typing import Any

import pytest

from synth import shown


@pytest.mark.parametrize(
    ("statement", "config", "part"),
    [
        ("Sum them.", {"numbers": [1, 2, 3]}, ""),
        ("For example of [1, 2, 3] it is 6.", {"numbers": [1, 2, 3]}, "numbers="),
        ("For example of [1,2,3] it is 6.", {"numbers": [1, 2, 3]}, "numbers="),
        ("For example of (1, 2, 3) it is 6.", {"numbers": [1, 2, 3]}, "numbers="),
        ("For example of [1, 2] it is 3.", {"numbers": [1, 2, 3]}, ""),
        ("Of f([[1, 2], [3]]) all.", {"rows": [[1, 2], [3]]}, "rows="),
        ("Of ['a', 'b'] all.", {"words": ["a", "b"], "k": 1}, "words="),
        ('Of ["a", "b"] all.', {"words": ["a", "b"], "k": 1}, "words="),
        ("Of {'a': 1, 'b': 2} all.", {"ages": {"a": 1, "b": 2}}, "ages="),
        ("A [5] here.", {"numbers": [5]}, ""),
        ("Read abracadabra.", {"text": "abracadabra"}, "text="),
        ("Read abc.", {"text": "abc"}, ""),
        ("A ([)] riddle (", {"numbers": [1, 2]}, ""),
    ],
)
def test_what_a_statement_prints_is_found(statement: str, config: Any, part: str) -> None:
    found = shown.gives_away(statement, config)
    assert found.startswith(part) and bool(found) == bool(part)


@pytest.mark.parametrize(
    "answer", [7, 0, -3, True, False, 2.5, "a b", "", [1, 2], [], {"a": 1}, None]
)
def test_no_wrong_form_is_a_right_one(answer: Any) -> None:
    kinds = {bool: bool, int: int, float: float, str: str}
    kind = kinds.get(type(answer), Any)
    for wrong in shown.wrong_answers(answer):
        assert not shown.equal(wrong, answer, kind)
    for form in shown.right_forms(answer) if kind is not Any else ():
        assert shown.equal(form, answer, kind)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "integer"}, int),
        ({"type": "boolean"}, bool),
        (
            {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            list[list[float]],
        ),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, Any),
        ({}, Any),
    ],
)
def test_the_type_of_an_answer_is_read_from_its_schema(schema: Any, kind: Any) -> None:
    done = {"name": "done", "parameters": {"properties": {"answer": schema}}}
    assert shown.answer_type([{"function": done}]) == kind


def test_guesses_are_among_configurations_with_the_same_statement() -> None:
    told = [("a", i % 4) for i in range(8)] + [("b", 0)] * 8
    assert shown.guess_rate("a", told) == 0.25
    assert shown.guess_rate("b", told) == 1.0
    # Nothing is known of this one: all are looked at.
    assert shown.guess_rate("c", told) == 10 / 16


def test_of_few_configurations_only_one_answer_for_all_counts() -> None:
    assert shown.guess_rate("a", [("a", 1), ("a", 1), ("a", 2)]) == 0.0
    assert shown.guess_rate("a", [("a", 1), ("a", 1)]) == 1.0
    assert shown.guess_rate("a", [("a", 1)]) == 0.0
