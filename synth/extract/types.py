"""Types of a solution's parameters and result, as text: from its annotations, else from examples."""

import ast
from collections.abc import Iterable
from typing import Any

from synth.extract.errors import NotExtractableError

_PLAIN = frozenset(("int", "float", "bool", "str"))
_LISTS = frozenset(("list", "List", "tuple", "Tuple", "Sequence"))
_DICTS = frozenset(("dict", "Dict", "Mapping"))


def declared(annotation: ast.expr | None) -> str:
    """The JSON type that an annotation means, or "" for none that is known."""
    match annotation:
        case ast.Name(id=name) if name in _PLAIN:
            return name
        case ast.Subscript(value=ast.Name(id=name), slice=item) if name in _LISTS:
            items = item.elts if isinstance(item, ast.Tuple) else [item]
            kinds = {
                declared(one)
                for one in items
                if not (isinstance(one, ast.Constant) and one.value is Ellipsis)
            }
            return f"list[{kinds.pop()}]" if len(kinds) == 1 and "" not in kinds else ""
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[key, value])) if (
            name in _DICTS
        ):
            inner = declared(value)
            return f"dict[str, {inner}]" if declared(key) == "str" and inner else ""
        case _:
            return ""


def seen(values: Iterable[Any]) -> str:
    """The JSON type of examples. Raises NotExtractableError for none, or several."""
    kinds = {_kind(value) for value in values} - {""}
    if kinds == {"int", "float"}:
        return "float"
    # An empty list goes with any other.
    if len(kinds) > 1:
        kinds = {kind for kind in kinds if "Any" not in kind}
    if len(kinds) != 1:
        raise NotExtractableError("types that examples do not tell", " or ".join(sorted(kinds)))
    return kinds.pop()


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "str"
        case None:
            raise NotExtractableError("no value", "an argument or result is None")
        case list() | tuple():
            return f"list[{_inner(value)}]"
        case dict() if all(isinstance(key, str) for key in value):
            return f"dict[str, {_inner(value.values())}]"
        case _:
            raise NotExtractableError("types that JSON does not have", type(value).__name__)


def _inner(values: Iterable[Any]) -> str:
    kinds = {_kind(value) for value in values}
    if kinds == {"int", "float"}:
        return "float"
    if len(kinds) > 1:
        kinds = {kind for kind in kinds if "Any" not in kind} or {"Any"}
    if len(kinds) > 1:
        raise NotExtractableError("lists of several types", " and ".join(sorted(kinds)))
    return kinds.pop() if kinds else "Any"
