"""The settings as text, from the schema: path, default, allowed values and what each does.

`python -m configs.describe` prints the reference in README.md.
"""

import sys
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from configs import schema
from configs.fields import bounds, docs
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
    about = docs(kind)
    for field in msgspec.structs.fields(kind):
        hint, inside = hints[field.name], f"{path}.{field.name}"
        if get_origin(hint) is dict:
            yield from _of_section(section, f"{inside}.<name>", get_args(hint)[1])
        else:
            text = about.get(field.name, "")
            yield Setting(section, inside, _default(field), bounds(hint), text)


def _default(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return str(field.default_factory())
    return "(required)"


if __name__ == "__main__":
    sys.stdout.write(reference())
