"""The settings as text, from the schema: path, default, allowed values and what each does.

`python -m configs.describe` prints the reference in README.md.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from configs import schema
from configs.fields import bounds, docs
from configs.load import DEFAULT_RECIPE, read
from configs.schema import Tree
from configs.sft import SftRecipe
from configs.synth import SynthRecipe

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


def section_names() -> list[str]:
    """The sections of `RunConfig`."""
    return [field.name for field in msgspec.structs.fields(schema.RunConfig)]


def describe_settings(sections: Collection[str] = ()) -> str:
    """Every setting of `RunConfig`, one per line, grouped by section; or those of some sections."""
    recipe = read([DEFAULT_RECIPE])
    shown = {name: tree for name, tree in recipe.items() if name in (sections or recipe)}
    lines = [
        "Each setting with its default. Without a recipe configs/local.toml is used, which sets"
    ]
    lines += [f"  {line}" for line in _leaves(shown)] or ["nothing here."]
    chosen = (one for one in settings() if one.path.split(".")[0] in (sections or section_names()))
    return "\n".join([*lines, *_listed(chosen)]) + "\n"


def describe_sft() -> str:
    """Every setting of a warm start's recipe."""
    return "\n".join(_listed(_of_section("", "", SftRecipe))) + "\n"


def describe_synth() -> str:
    """Every setting of the factory's recipe."""
    return "\n".join(_listed(_of_section("", "", SynthRecipe))) + "\n"


def _listed(those: Iterable[Setting]) -> Iterator[str]:
    for section, some in groupby(those, key=lambda setting: setting.section):
        yield from ("", f"[{section}]") if section else ()
        for one in some:
            allowed = f" ({one.allowed})" if one.allowed else ""
            yield f"  {f'{one.path}={one.default}':<{_WIDTH}} {one.text}{allowed}"


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
        hint, inside = hints[field.name], f"{path}.{field.name}".removeprefix(".")
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _of_section(inside, inside, hint)
        elif get_origin(hint) is dict and issubclass(get_args(hint)[1], msgspec.Struct):
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
