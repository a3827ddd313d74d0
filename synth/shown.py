"""What a task's text gives away, and what is equal to what: pure functions of the verifier."""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from envpool.env import canonical, same
from envpool.task import Config
from envpool.tools import Schema

# Text of a configuration that is this long is not in a statement by chance.
MIN_TEXT = 8
# A list of one element may be.
MIN_LIST = 2
# Statements and answers below which a share of them says nothing.
MIN_POPULATION = 8

_encode = msgspec.json.Encoder(order="sorted").encode


def gives_away(statement: str, config: Config) -> str:
    """The part of a configuration that its statement prints whole, an example's list included; or empty.

    Numbers are left to the certificate: any text has some.
    """
    printed = [value for value in _literals(statement) if isinstance(value, list | tuple | dict)]
    keys = {_encode(value) for value in printed}
    lists = [part for part in config.values() if isinstance(part, list | dict)]
    for name, part in config.items():
        if isinstance(part, list | dict) and len(part) >= MIN_LIST and _encode(part) in keys:
            return f"{name}={part!r}"
        if isinstance(part, str) and not lists and len(part) >= MIN_TEXT and part in statement:
            return f"{name}={part!r}"
    return ""


def _literals(text: str) -> Iterator[Any]:
    """Lists and dicts that are written out in a text, in Python or in JSON."""
    for start, mark in enumerate(text):
        if mark not in "[({":
            continue
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] in "[({") - (text[end] in "])}")
            if depth == 0:
                yield from _read(text[start : end + 1])
                break


def _read(text: str) -> Iterator[Any]:
    for read in (msgspec.json.decode, ast.literal_eval):
        try:
            yield read(text)
            return
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue


def answer_type(tools: Sequence[Schema]) -> Any:
    """The type of an environment's answer, as far as its schema tells."""
    for schema in tools:
        function = schema["function"]
        if function["name"] == "done":
            return _type(function["parameters"]["properties"]["answer"])
    return Any


def _type(schema: Schema) -> Any:
    kinds: dict[Any, Any] = {"integer": int, "number": float, "string": str, "boolean": bool}
    kind = schema.get("type")
    if isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    if kind == "array" and "prefixItems" not in schema:
        return list[_type(schema.get("items", {}))]
    return Any


def equal(answer: Any, other: Any, kind: Any = Any) -> bool:
    """Whether two answers in JSON are the same to who grades them as `kind`."""
    return same(canonical(answer, kind), canonical(other, kind))


def right_forms(answer: Any) -> list[Any]:
    """Ways in which an agent may write an answer, each of which has to win."""
    if isinstance(answer, str):
        return [answer, f" {answer}\n"]
    text = msgspec.json.encode(answer).decode()
    forms = [answer, text, f" {text} "]
    if type(answer) is int:
        forms += [float(answer), f"{answer}.0"] if abs(answer) < 2**53 else []
    return forms


def wrong_answers(answer: Any) -> list[Any]:
    """Answers near the right one that are others."""
    if isinstance(answer, bool):
        return [not answer]
    if isinstance(answer, int):
        return [answer + 1, answer - 1, -answer if answer else 7]
    if isinstance(answer, float):
        return [answer + 1, answer * 1.01 + 0.01]
    if isinstance(answer, str):
        return [answer + "x", answer[:-1] if answer else "y"]
    if isinstance(answer, list):
        longer = [*answer, answer[-1] if answer else 0]
        return [longer, answer[:-1]] if answer else [longer]
    if isinstance(answer, dict):
        return [{**answer, "no such key": 0}]
    return [0, "x"]


def wrong_forms(answer: Any) -> list[Any]:
    """The same as they may be written."""
    return [form for wrong in wrong_answers(answer) for form in right_forms(wrong)]


def guess_rate(statement: str, told: Sequence[Sequence[Any]]) -> float:
    """Share of the commonest answer: `told` are statements and answers of configurations.

    Of those with this statement where they are enough, else of all. Where all are too few, only an answer
    that never changes counts.
    """
    answers = [answer for text, answer in told if text == statement]
    if len(answers) < MIN_POPULATION:
        answers = [answer for _, answer in told]
    counts = Counter(map(_encode, answers))
    if len(answers) < MIN_POPULATION:
        return float(len(answers) > 1 and len(counts) == 1)
    return counts.most_common(1)[0][1] / len(answers)


def in_brief(value: Any, most: int = 160) -> str:
    """JSON of a value for a message, cut where it is long."""
    text = re.sub(r"\s+", " ", msgspec.json.encode(value).decode())
    return text if len(text) <= most else f"{text[:most]}..."
