"""TOML files and `a.b=value` overrides become one validated `RunConfig`.

Files and overrides merge in the order given, later wins. Relative recipe and model paths are also
looked up beside this file, so that a run does not depend on the working directory.
"""

import importlib
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from configs.fields import mistake
from configs.schema import RunConfig, Tree

RECIPES = Path(__file__).parent

# What a run uses where no recipe is named.
DEFAULT_RECIPE = "local.toml"

# The key by which a recipe names the one that it changes: beside it, here, or beside the program's.
EXTENDS = "extends"

T = TypeVar("T")


class ConfigError(ValueError):
    """The user's configuration is wrong; the message names field, value and cure."""


def load(arguments: Sequence[str]) -> RunConfig:
    """Merge files and overrides into a config; raises ConfigError."""
    tree = read(arguments)
    add_imports(tree, arguments)
    return convert(tree, RunConfig)


def folders(arguments: Sequence[str]) -> list[str]:
    """The directories of the recipes among `arguments`, but for the program's own recipes'."""
    files = [find(word) for word in arguments if word.endswith(".toml") and "=" not in word]
    found = [path.absolute().parent for path in files]
    return [str(folder) for folder in dict.fromkeys(found) if folder != RECIPES]


def add_imports(tree: Tree, arguments: Sequence[str]) -> None:
    """Note in a run's tree that modules beside the recipes named can be imported.

    It is a setting, so that every process of the run has it, and the run that goes on from it.
    """
    run = tree.setdefault("run", {})
    known = run.get("imports", []) if isinstance(run, dict) else None
    if isinstance(known, list):  # else it is refused as every wrong value
        run["imports"] = [*known, *(one for one in folders(arguments) if one not in known)]


def make_importable(directories: Sequence[str]) -> None:
    """Put directories on the import path of this process, right after the program's own."""
    own = str(RECIPES.parent)
    at = sys.path.index(own) + 1 if own in sys.path else 1
    wanted = [str(Path(one).expanduser().absolute()) for one in directories]
    sys.path[at:at] = [one for one in dict.fromkeys(wanted) if one not in sys.path]
    importlib.invalidate_caches()


def read(arguments: Sequence[str]) -> Tree:
    """Merge `file.toml` and `a.b=value` arguments into one tree; raises ConfigError."""
    tree: Tree = {}
    for argument in arguments:
        path, equals, value = argument.partition("=")
        if equals and not path.endswith(".toml"):
            merge(tree, _override(path, value))
        elif argument.endswith(".toml"):
            merge(tree, _recipe(find(argument)))
        else:
            raise ConfigError(f"argument {argument!r} is neither a .toml file nor a.b=value")
    return tree


def convert(tree: Tree, kind: type[T]) -> T:
    """Validate a merged tree; raises ConfigError with the wrong field, its value and what is right."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(mistake(tree, kind) or str(error)) from error


def find(path: str) -> Path:
    """`path` as given if it exists, else beside the recipes; raises ConfigError."""
    for candidate in (Path(path).expanduser(), RECIPES / path):
        if candidate.exists():
            return candidate
    raise ConfigError(f"{path!r} does not exist, neither here nor in {RECIPES}")


def merge(base: Tree, over: Tree) -> None:
    """Deep-merge `over` into `base`; a table whose `type` changes is replaced whole."""
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_variant(old, value):
            merge(old, value)
        else:
            base[key] = value


def _same_variant(old: Tree, new: Tree) -> bool:
    return "type" not in new or new["type"] == old.get("type")


def _recipe(path: Path, *, within: tuple[Path, ...] = ()) -> Tree:
    """The tree of a recipe, merged over that of the one it extends."""
    own = _file(path)
    if EXTENDS not in own:
        return own
    wanted = own.pop(EXTENDS)
    if not isinstance(wanted, str) or not wanted.endswith(".toml"):
        raise ConfigError(
            f'{path}: {EXTENDS}={wanted!r} must be the path of a recipe: "local.toml"'
        )
    beside = path.parent / wanted
    chain = (*within, path.resolve())
    found = beside if beside.exists() else find(wanted)
    if found.resolve() in chain:
        raise ConfigError(
            f"{path}: {EXTENDS}={wanted!r} comes back to a recipe that extends this one"
        )
    tree = _recipe(found, within=chain)
    merge(tree, own)
    return tree


def _file(path: Path) -> Tree:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}{_shown(str(error), text)}") from error


def _shown(message: str, text: str) -> str:
    """The line that a TOML error is about, with a mark below the place."""
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    lines = text.splitlines()
    if match is None or int(match[1]) > len(lines):
        return f"; the last line: {lines[-1].strip()}" if lines else ""
    line, column = lines[int(match[1]) - 1].replace("\t", " "), int(match[2])
    cure = '; a text needs quotes: "text"' if message.startswith("Invalid value") else ""
    return f"{cure}\n    {line}\n    {' ' * (column - 1)}^"


def _override(path: str, text: str) -> Tree:
    keys = path.split(".")
    if not all(keys):
        raise ConfigError(f"override {path}={text}: empty key in {path!r}")
    tree: Tree = {keys[-1]: _value(text)}
    for key in reversed(keys[:-1]):
        tree = {key: tree}
    return tree


def _value(text: str) -> object:
    """A TOML value where it parses as one, else the text itself (`run.dir=runs/a`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
