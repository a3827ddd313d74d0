"""The settings as text, from the schema: path, default, allowed values and what each does.

`python -m configs.describe` prints the reference in README.md.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from configs import schema
from configs.load import DEFAULT_RECIPE, read
from configs.schema import Tree

_WIDTH = 34


class Setting(NamedTuple):
    """One value of the config."""

    section: str
    path: str
    default: str
    allowed: str
    """Choices or bounds; empty where the type says it all."""
    text: str


def settings() -> Iterator[Setting]:
    """Every setting of `RunConfig`, section by section."""
    for section in msgspec.structs.fields(schema.RunConfig):
        kind, name = section.type, section.name
        if get_origin(kind) is dict:
            kind, name = get_args(kind)[1], f"{name}.<name>"
        yield from _of_section(name, name, kind)


def describe_settings() -> str:
    """Every setting of `RunConfig`, one per line, grouped by section."""
    lines: list[str] = [
        "Each setting with its default. Without a recipe configs/local.toml is used, which sets its own:",
        *(f"  {line}" for line in _leaves(read([DEFAULT_RECIPE]))),
        "",
    ]
    for section, those in groupby(settings(), key=lambda setting: setting.section):
        lines += ["", f"[{section}]"]
        for one in those:
            allowed = f" ({one.allowed})" if one.allowed else ""
            lines.append(f"  {f'{one.path}={one.default}':<{_WIDTH}} {one.text}{allowed}")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The same as a Markdown table."""
    lines = ["| setting | default | allowed | |", "|---|---|---|---|"]
    for one in settings():
        cells = (f"`{one.path}`", f"`{one.default}`" if one.default else "", one.allowed, one.text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _leaves(tree: Tree, path: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}={value}"


def _of_section(section: str, path: str, kind: type) -> Iterator[Setting]:
    hints = get_type_hints(kind, include_extras=True)
    docs = _docs(kind)
    for field in msgspec.structs.fields(kind):
        hint, inside = hints[field.name], f"{path}.{field.name}"
        if get_origin(hint) is dict:
            yield from _of_section(section, f"{inside}.<name>", get_args(hint)[1])
        else:
            text = docs.get(field.name, "")
            yield Setting(section, inside, _default(field), _allowed(hint), text)


def _allowed(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is not Annotated:
        return ""
    _, meta = get_args(hint)
    if meta.ge is not None and meta.le is not None:
        return f"{meta.ge} to {meta.le}"
    return f"> {meta.gt}" if meta.gt is not None else f">= {meta.ge}"


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


if __name__ == "__main__":
    sys.stdout.write(reference())
