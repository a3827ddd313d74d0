"""The settings as text, from the schema: path, type, default and what each does."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from configs import schema
from configs.load import DEFAULT_RECIPE, read
from configs.schema import Tree

_WIDTH = 34


def describe_settings() -> str:
    """Every setting of `RunConfig`, one per line, grouped by section."""
    lines: list[str] = [
        "Each setting with its default. Without a recipe configs/local.toml is used, which sets its own:",
        *(f"  {line}" for line in _leaves(read([DEFAULT_RECIPE]))),
        "",
    ]
    for section in msgspec.structs.fields(schema.RunConfig):
        kind, name = section.type, section.name
        if get_origin(kind) is dict:
            kind, name = get_args(kind)[1], f"{name}.<name>"
        lines += ["", f"[{name}]", *_describe(name, kind)]
    return "\n".join(lines) + "\n"


def _leaves(tree: Tree, path: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}={value}"


def _describe(path: str, kind: type) -> list[str]:
    hints = get_type_hints(kind)
    docs = _docs(kind)
    lines = []
    for field in msgspec.structs.fields(kind):
        inner = get_args(hints[field.name])
        if get_origin(hints[field.name]) is dict:
            lines += _describe(f"{path}.{field.name}.<name>", inner[1])
            continue
        setting = f"{path}.{field.name}={_default(field)}"
        is_choice = get_origin(hints[field.name]) is Literal
        choices = f" ({' | '.join(map(str, inner))})" if is_choice else ""
        lines.append(f"  {setting:<{_WIDTH}} {docs.get(field.name, '')}{choices}")
    return lines


def _default(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return str(field.default_factory())
    return "(required)"


def _docs(kind: type) -> dict[str, str]:
    """The string under each field."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        match node, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs
