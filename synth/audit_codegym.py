"""Env files after CodeGym's contract, with the instances that lie beside them in JSONL or parquet.

A file has one class with `get_ref_answer`; an instance names a class and a configuration in its `ability`,
and may bring the source with it.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from envpool.folder import env_id_of
from envpool.task import Config
from synth.auditable import Auditable, AuditTask, text_of, tree_of
from synth.reading import Fields, Unread, rows, slug

_DATA = (".jsonl", ".parquet")
# `codegym_v1@<code id>__<class>@<dict>`; some leave out what stands before the class.
_ABILITY = re.compile(r"(?:(?P<code>.*?)__)?(?P<name>[A-Za-z]\w*)@(?P<config>.*)", re.DOTALL)


class _Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a data file that names a configuration."""

    code: str
    name: str
    literal: str
    prompt: str
    source: str


def env_files(directory: Path, notes: list[str]) -> Iterator[Auditable]:
    sources: dict[str, tuple[str, str]] = {}
    """Class and text by id: the file's name, or `<code id>__<class>` of a row that brings its own."""
    for path in sorted(directory.rglob("*.py")):
        for name in _env_classes(text_of(path)):
            sources[path.stem] = name, text_of(path)
    tasks: dict[str, list[AuditTask]] = {}
    codes: dict[str, str] = {}
    for instance in _instances(directory, notes):
        env = _env_of(instance, sources)
        if env is None and instance.name in _env_classes(instance.source):
            env = f"{instance.code}__{instance.name}"
            sources[env] = instance.name, instance.source
        if env is None:
            notes.append(f"no env file for {instance.code}__{instance.name}")
            continue
        codes[env] = instance.code
        try:
            config = _plain(ast.literal_eval(instance.literal))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            notes.append(f"{env}: its configuration is no literal: {instance.literal[:80]}")
            continue
        tasks.setdefault(env, []).append(
            AuditTask(config=config, literal=instance.literal, prompt=instance.prompt)
        )
    for env, (name, source) in sorted(sources.items()):
        own = env_id_of(name)
        names = {env, own, own.removesuffix("_env"), codes.get(env, "")}
        described = _described(source, name)
        yield Auditable(
            env=env,
            kind="codegym",
            name=name,
            source=source,
            tasks=tuple(tasks.get(env, [AuditTask(config=None, prompt=described)])),
            words=frozenset(slug(word) for word in names if word),
        )


def _instances(directory: Path, notes: list[str]) -> Iterator[_Instance]:
    paths = sorted(path for path in directory.rglob("*") if path.suffix in _DATA)
    for path in paths:
        for place, row in rows(path):
            if isinstance(row, Unread):
                notes.append(row.text)
                continue
            instance = _instance(row)
            if instance is not None:
                yield instance
            elif "ability" in row:
                notes.append(f"{place}: ability={str(row['ability'])[:80]!r} names no class")


def _instance(row: Fields) -> _Instance | None:
    ability = row.get("ability")
    if not isinstance(ability, str):
        return None
    # What stands before the first mark is the data set, if anything stands there.
    head, _, tail = ability.partition("@")
    matched = _ABILITY.fullmatch(tail) or _ABILITY.fullmatch(ability)
    if matched is None:
        return None
    extra = row.get("extra_info")
    source = extra.get("gym_env") if isinstance(extra, dict) else None
    return _Instance(
        code=matched["code"] or str(row.get("code_id") or head),
        name=matched["name"],
        literal=matched["config"],
        prompt=_prompt(row.get("prompt")),
        source=source if isinstance(source, str) else "",
    )


def _env_of(instance: _Instance, sources: Mapping[str, tuple[str, str]]) -> str | None:
    """The file of an instance: of its class, and of its id where several have such a class."""
    of_class = [env for env, (name, _) in sources.items() if name == instance.name]
    of_code = [env for env in of_class if env.startswith(instance.code)]
    if of_code:
        return of_code[0]
    # A row that brings its source is its own environment.
    return of_class[0] if len(of_class) == 1 and not instance.source else None


def _prompt(value: Any) -> str:
    """Messages, or a text."""
    if isinstance(value, str):
        return value
    messages = value if isinstance(value, list) else []
    texts = [one.get("content") for one in messages if isinstance(one, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _described(source: str, name: str) -> str:
    """What a file says of its task: the text of its module and its class."""
    tree = tree_of(source)
    nodes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    told = [node for node in nodes if isinstance(node, ast.Module) or node.name == name]
    return "\n".join(ast.get_docstring(node) or "" for node in told)


def _env_classes(source: str) -> list[str]:
    return [
        node.name
        for node in tree_of(source).body
        if isinstance(node, ast.ClassDef)
        and {"get_ref_answer", "step"}
        <= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    ][:1]


def _plain(value: Any) -> Config | None:
    """A dict as JSON has it; None for what is none there."""
    try:
        config = msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    return config if isinstance(config, dict) else None
