"""Rows of problem sets in the shapes they are published in, as rows that are all alike.

Text only: solutions are parsed, never run. What a row lacks is said with its cure.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from synth.cutting import parse
from synth.literals import NotPlainError, asserted, bind, called, few, plain
from synth.problem import ProblemError, Test, entry_of, parameters_of
from synth.reading import Fields, Unread, slug
from synth.solutions import functions_in, parameters_in

Shape = Callable[[Fields, int], "Row"]


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of any shape, before it is checked."""

    id: str
    statement: str
    solutions: list[str]
    entry: str = ""
    """Function or method that is called; empty: to be found."""
    kind: str = "function"
    tests: Any = None
    """Pairs, objects, or the text of asserts."""
    generator: str = ""
    checker: str = ""
    concept: str = ""
    source: str = ""
    licence: str = ""
    needs_all: bool = False
    """Whether one wrong solution refuses the row: in published sets some are, among many."""


NATIVE_FIELDS = (
    "id", "statement", "solution", "solutions", "entry", "kind", "tests", "generator", "checker",
    "concept", "source", "licence",
)  # fmt: skip


def native(fields: Fields, number: int) -> Row:
    """Rows of this factory's own field names."""
    first, others = fields.get("solution"), as_list(fields.get("solutions"))
    told = {name: _text(fields, name) for name in ("entry", "generator", "checker", "concept")}
    return Row(
        id=_id(fields.get("id"), "", number),
        statement=_text(fields, "statement"),
        solutions=([first] if isinstance(first, str) else []) + others,
        kind=_text(fields, "kind") or "function",
        tests=as_json(fields.get("tests")),
        source=_text(fields, "source"),
        licence=_text(fields, "licence"),
        needs_all=True,
        **told,
    )


def kodcode(fields: Fields, number: int) -> Row:
    """`question`, `solution`, `test` with asserts, `question_id`, `test_info`, `subset`."""
    solution = _text(fields, "solution")
    info = as_json(fields.get("test_info"))
    first = info[0] if isinstance(info, list) and info else info
    named = first.get("function_name") if isinstance(first, dict) else None
    return Row(
        id=_id(fields.get("question_id"), "kodcode", number),
        statement=_text(fields, "question"),
        solutions=[solution] if solution else [],
        entry=named if isinstance(named, str) else "",
        tests=_text(fields, "test"),
        source="/".join(["kodcode", *([_text(fields, "subset")] if fields.get("subset") else [])]),
        licence=_text(fields, "licence") or _text(fields, "license"),
    )


def apps(fields: Fields, number: int) -> Row:
    """`question`, `solutions` and `input_output` as JSON texts, `starter_code`, `problem_id`."""
    return _judged(fields, number, "apps")


def taco(fields: Fields, number: int) -> Row:
    """As `apps`, with `skill_types` and `name`."""
    return _judged(fields, number, "taco")


SHAPES: Mapping[str, Shape] = {"native": native, "kodcode": kodcode, "apps": apps, "taco": taco}


def _judged(fields: Fields, number: int, family: str) -> Row:
    cases = as_json(fields.get("input_output"))
    cases = cases if isinstance(cases, dict) else {}
    entry = cases.get("fn_name")
    entry = entry if isinstance(entry, str) else ""
    given, wanted = as_list(cases.get("inputs"), Any), as_list(cases.get("outputs"), Any)
    pairs = list(zip(given, wanted, strict=False))
    skills = sorted(slug(skill) for skill in as_list(fields.get("skill_types")))
    url = _text(fields, "url")
    native_id = fields.get("problem_id", fields.get("id", fields.get("name")))
    return Row(
        id=_id(native_id, family, number),
        statement=_text(fields, "question"),
        solutions=as_list(fields.get("solutions")),
        entry=entry,
        kind="function" if entry else "stdin",
        tests=_calls(pairs, fields, entry) if entry else _streams(pairs),
        concept="_and_".join(skills),
        source=f"{family} {url}".strip(),
        licence=_text(fields, "licence") or _text(fields, "license"),
    )


def _streams(pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Examples on standard input and output, each a text or its lines."""
    tests = []
    for given, wanted in pairs:
        texts = [
            "\n".join(map(str, one)) if isinstance(one, list) else one for one in (given, wanted)
        ]
        if all(isinstance(text, str) for text in texts):
            tests.append({"args": {"stdin": texts[0]}, "answer": texts[1]})
    return tests


def _calls(pairs: list[tuple[Any, Any]], fields: Fields, entry: str) -> list[Any]:
    """Examples of a function: arguments in order, or a text with one on each line; and the answer.

    Answers stand in a list of one, unless that is what the function returns.
    """
    unwraps = all(isinstance(answer, list) and len(answer) == 1 for _, answer in pairs)
    if unwraps and _returns_list(_text(fields, "starter_code"), entry):
        unwraps = all(isinstance(answer[0], list) for _, answer in pairs)
    tests = []
    for given, answer in pairs:
        args = given
        if isinstance(given, str):
            args = [as_json(line) for line in given.splitlines()]
        if isinstance(args, list):
            tests.append([args, answer[0] if unwraps else answer])
    return tests


def _returns_list(starter: str, entry: str) -> bool:
    """Whether a stub, which has no body, is annotated to return a list."""
    _, found, rest = starter.partition(f"def {entry}(")
    _, arrow, annotation = rest.partition("->")
    return bool(found and arrow) and annotation.strip().lower().startswith(("list", "typing.list"))


def tests_of(row: Row, source: str, place: str) -> tuple[Test, ...]:
    """The examples of a row, for the solution `source`. Raises Unread."""
    if isinstance(row.tests, str):
        names = {row.entry: parameters_in(source, row.entry)}
        try:
            return few(asserted(row.tests, names)[row.entry])
        except ProblemError as error:
            raise Unread("bad test", f"{place}: tests: {error}: correct or remove them") from error
    if row.tests is None:
        return ()
    if not isinstance(row.tests, list):
        raise Unread(
            "bad test", f"{place}: tests={row.tests!r:.80} is no list: give [args, answer] pairs"
        )
    names = ["stdin"] if row.kind == "stdin" else parameters_in(source, row.entry)
    return few([_test(one, names, place) for one in row.tests])


def _test(one: Any, names: list[str], place: str) -> Test:
    args, answer = None, None
    if isinstance(one, dict) and one.keys() >= {"args", "answer"}:
        args, answer = one["args"], one["answer"]
    elif isinstance(one, list | tuple) and len(one) == 2:
        args, answer = one
    if isinstance(args, str) and names == ["stdin"]:
        args = [args]
    try:
        if isinstance(args, dict):
            # Parquet gives every row the keys of all rows.
            args = {key: value for key, value in args.items() if value is not None or key in names}
            return Test(args=bind(names, [], plain(args)), answer=plain(answer))
        if isinstance(args, list):
            return Test(args=bind(names, plain(args), {}), answer=plain(answer))
    except (NotPlainError, ProblemError) as error:
        raise Unread("bad test", f"{place}: a test has {error}: correct or remove it") from error
    raise Unread(
        "bad test",
        f'{place}: the test {one!r:.80} is neither {{"args": ..., "answer": ...}} nor [args, answer]: '
        "write it as one of these",
    )


def entry_name(row: Row, source: str, place: str) -> str:
    """The function of a solution that is called. Raises Unread where none can be told."""
    names = functions_in(parse(source))
    if row.entry:
        if row.entry not in names:
            raise Unread("no entry", f"{place}: {_lacking(source, row.entry)}: name one in `entry`")
        return row.entry
    if "solve" in names:
        return "solve"
    if isinstance(row.tests, str) and (found := called(row.tests, names)):
        return found
    if len(names) == 1:
        return names[0]
    known = ", ".join(names) or "none"
    raise Unread(
        "no entry",
        f"{place}: which function is called? There is {known}: name it in `entry`, or say "
        '"kind": "stdin" of a program that reads standard input',
    )


def _lacking(source: str, name: str) -> str:
    try:
        parameters_of(entry_of(source, name))
    except ProblemError as error:
        return str(error)
    return f"no function {name!r}"


def as_json(value: Any) -> Any:
    """`value`, or what the JSON is that it is the text of."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:  # some sets write Python in place of JSON
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def as_list(value: Any, kind: Any = str) -> list[Any]:
    """The members of a list, or of one that is written as text; of the kind that is wanted."""
    value = as_json(value)
    if isinstance(value, str) and value:
        value = [value]
    if not isinstance(value, list | tuple):
        return []
    return list(value) if kind is Any else [one for one in value if isinstance(one, kind)]


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    return value.strip("\n") if isinstance(value, str) else ""


def _id(value: Any, family: str, number: int) -> str:
    """An id in words; of a row without one the number of its line in a named family, else empty."""
    words = slug(str(value)) if value is not None else ""
    if not words:
        words = str(number) if family else ""
    if family and words and not words.startswith(family):
        return f"{family}_{words}"
    return f"p_{words}" if words[:1].isdigit() else words
