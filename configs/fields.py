"""What the schema says of a setting: its doc, its bounds or choices, and what is wrong with a value.

Mistakes are found by walking the types, so that a message has the value, the name as it is written in
overrides, and what would be right: msgspec's own messages have none of the three for a dict's entry.
"""

import ast
import difflib
import inspect
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

# A longer value is cut in a message.
_MAX_VALUE = 80

_KINDS: dict[object, str] = {
    int: "an int",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def docs(kind: type) -> dict[str, str]:
    """The string under each field of a section."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        match node, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


def bounds(hint: Any) -> str:
    """Choices or bounds of a field's type; empty where the type says it all."""
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is not Annotated:
        return ""
    _, meta = get_args(hint)
    if meta.ge is not None and meta.le is not None:
        return f"{meta.ge} to {meta.le}"
    return f"> {meta.gt}" if meta.gt is not None else f">= {meta.ge}"


def mistake(tree: object, kind: type) -> str:
    """What is wrong with a tree, in words; empty where nothing is found below its top."""
    return _in_table(tree, kind, "")


def _in_table(value: object, kind: type, path: str) -> str:
    """The first mistake in the table of a section."""
    if not isinstance(value, dict):
        return f"{path}={_said(value)} must be a table of settings: {_names(kind, path)}"
    hints, about = get_type_hints(kind, include_extras=True), docs(kind)
    fields = msgspec.structs.fields(kind)
    for key in value:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            where = f"[{path}] has" if path else "there are"
            return f"{_join(path, key)} is not known; {hint}{where} {', '.join(hints)}"
    for field in fields:
        if field.required and field.name not in value:
            doc = about.get(field.name, "")
            return f"{_join(path, field.name)} is missing{f' ({doc})' if doc else ''}"
    for key, inner in value.items():
        wrong = _in_value(inner, hints[key], _join(path, key), about.get(key, ""))
        if wrong:
            return wrong
    return _in_whole(value, kind, path)


def _in_whole(value: object, kind: type, path: str) -> str:
    """What the section itself refuses, every value of which is right."""
    if not path:
        return ""  # the caller has this message
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return f"{path}: {error}"
    return ""


def _in_value(value: object, hint: Any, path: str, doc: str) -> str:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _in_table(value, hint, path)
    if get_origin(hint) is dict and isinstance(value, dict):
        inner = get_args(hint)[1]
        wrong = (_in_value(one, inner, _join(path, key), "") for key, one in value.items())
        return next(filter(None, wrong), "")
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError:
        about = f" ({doc})" if doc else ""
        return f"{path}={_said(value)} must be {_wanted(hint)}{about}{_cure(value, hint)}"
    return ""


def _wanted(hint: Any) -> str:
    """What a value must be: `an int >= 0`."""
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {bounds(hint)}"
    if origin is Annotated:
        words = bounds(hint)
        return f"{_wanted(get_args(hint)[0])} {'from ' if ' to ' in words else ''}{words}"
    if origin is list and get_origin(get_args(hint)[0]) is Literal:
        return f"a list of words from {bounds(get_args(hint)[0])}"
    if origin is list:
        return f"a list of {_wanted(get_args(hint)[0]).partition(' ')[2]}s"
    if origin is dict:
        return "a table, in TOML {name = value}"
    return _KINDS[hint]


def _cure(value: object, hint: Any) -> str:
    if get_origin(hint) is Literal:
        near = difflib.get_close_matches(str(value), [str(one) for one in get_args(hint)], n=2)
        return f"; did you mean {' or '.join(near)}?" if near else ""
    if get_origin(hint) is list and isinstance(value, str):
        return f'; in brackets: ["{value}"]'
    if hint is str and isinstance(value, int | float):
        return f'; in quotes it is one: "{_said(value)}"'
    return ""


def _said(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def _names(kind: type, path: str) -> str:
    return ", ".join(_join(path, field.name) for field in msgspec.structs.fields(kind))


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
