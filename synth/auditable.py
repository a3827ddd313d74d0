"""What there is to audit in a directory: environments of either kind with their tasks, read as text.

    result of this factory   manifest.json, pool/<side>/*.py and tasks.jsonl, traces.jsonl
    pool of `ToolEnv`s       *.py, and tasks.jsonl where configurations are listed
    env files of CodeGym     one class each, with `get_ref_answer`; instances in JSONL or parquet beside them

Nothing is imported: a class is known by its syntax tree.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from configs.load import ConfigError
from envpool import folder
from envpool.task import Config, config_digest
from synth.export import MANIFEST, faults, read_manifest
from synth.reading import Fields, Unread, rows, slug
from synth.records import Move

TRACES = "traces.jsonl"
_DATA = (".jsonl", ".parquet")
# Classes of this project that environments are made of.
_BASES = frozenset({"ToolEnv", "Stepwise"})
# `codegym_v1@<code id>__<class>@<dict>`; some leave out what stands before the class.
_ABILITY = re.compile(r"(?:(?P<code>.*?)__)?(?P<name>[A-Za-z]\w*)@(?P<config>.*)", re.DOTALL)

Kind = Literal["millrace", "codegym"]


class AuditTask(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration."""

    config: Config | None
    """In JSON, as solutions get it; None where it is none."""
    literal: str = ""
    """Of CodeGym's kind: the dict as its environment reads it; empty for what the class starts with."""
    prompt: str = ""
    """What an agent is told beside the statement."""
    trace: tuple[Move, ...] = ()


class Auditable(msgspec.Struct, frozen=True, kw_only=True):
    """One environment."""

    env: str
    kind: Kind
    name: str
    """Its id, or of CodeGym's kind its class."""
    source: str
    files: Mapping[str, bytes] = {}
    """All of its pool, where it may need what lies beside it."""
    module: str = ""
    """Its module among `files`."""
    tasks: tuple[AuditTask, ...] = ()
    """Empty: those that it draws or starts with."""
    words: frozenset[str] = frozenset()
    """Ids that its problem may have."""


def found_in(directory: Path) -> tuple[list[Auditable], list[str]]:
    """The environments of a directory, and notes on what is left out. Blocks.

    Raises ConfigError for a directory that has none, and for a result that is not whole.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory: name a result, a pool or env files")
    if (directory / MANIFEST).exists():
        return _result(directory), []
    if (directory / TRACES).exists() and (directory / "pool").is_dir():
        raise ConfigError(
            f"{directory} has no {MANIFEST}: the factory was not done; run it again, or name one of "
            f"the pools in {directory / 'pool'}"
        )
    notes: list[str] = []
    found = [*_pool(directory), *_upstream(directory, notes)]
    if not found:
        raise ConfigError(
            f"{directory} holds no environments: name a result of `synth` ({MANIFEST}), a pool (.py "
            "files with a ToolEnv), or env files of CodeGym (a class with get_ref_answer in each)"
        )
    return found, notes


# -- results of this factory ----------------------------------------------------------------------


class _Trace(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit reads of a line of traces.jsonl."""

    env: str
    config: Config
    calls: tuple[Move, ...] = ()
    problem: str = ""


def _result(directory: Path) -> list[Auditable]:
    manifest = read_manifest(directory)
    wrong = faults(directory)
    if manifest is None or wrong:
        raise ConfigError(f"{directory} is not whole: {wrong[0]}")
    traces: dict[str, _Trace] = {}
    problems: dict[str, str] = {}
    for row in _lines(directory / TRACES, _Trace):
        traces[config_digest(row.env, row.config)] = row
        problems[row.env] = row.problem
    found = []
    for pool in sorted(path for path in (directory / "pool").iterdir() if path.is_dir()):
        for one in _pool(pool):
            tasks = []
            for task in one.tasks:
                row = traces.get(config_digest(one.env, task.config or {}))
                trace = row.calls if row is not None else ()
                tasks.append(msgspec.structs.replace(task, trace=trace))
            words = one.words | ({problems[one.env]} if problems.get(one.env) else frozenset())
            # Sources of the factory stand alone.
            found.append(
                msgspec.structs.replace(one, tasks=tuple(tasks), words=words, files={}, module="")
            )
    return found


# -- pools ----------------------------------------------------------------------------------------


def _pool(directory: Path) -> list[Auditable]:
    """Environments of a pool; none where no file has one."""
    sources = {
        path.name: path
        for path in sorted(directory.glob("*.py"))
        if not path.stem.startswith(("_", "test_"))
    }
    classes = {
        name: [node.name for node in _classes(path) if _BASES & set(map(_last, node.bases))]
        for name, path in sources.items()
    }
    if not any(classes.values()):
        return []
    files = folder.read(f"{directory}", str(directory))
    listed: dict[str, list[AuditTask]] = {}
    if (directory / folder.TASKS).exists():
        for row in _lines(directory / folder.TASKS, folder.TaskRow):
            listed.setdefault(row.env, []).append(AuditTask(config=row.config))
    return [
        Auditable(
            env=(env := folder.env_id_of(name)),
            kind="millrace",
            name=env,
            source=files[file].decode(errors="replace"),
            files=files,
            module=Path(file).stem,
            tasks=tuple(listed.get(env, ())),
            words=frozenset({env}),
        )
        for file, names in classes.items()
        for name in names
        if not name.startswith("_")
    ]


# -- env files of CodeGym -------------------------------------------------------------------------


class _Instance(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a data file that names a configuration."""

    code: str
    name: str
    literal: str
    prompt: str
    source: str


def _upstream(directory: Path, notes: list[str]) -> Iterator[Auditable]:
    sources: dict[str, tuple[str, str]] = {}
    """Class and text by id: the file's name, or `<code id>__<class>` of a row that brings its own."""
    for path in sorted(directory.rglob("*.py")):
        for name in _env_classes(_text(path)):
            sources[path.stem] = name, _text(path)
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
        own = folder.env_id_of(name)
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
    tree = _tree(source)
    nodes = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    told = [node for node in nodes if isinstance(node, ast.Module) or node.name == name]
    return "\n".join(ast.get_docstring(node) or "" for node in told)


def _env_classes(source: str) -> list[str]:
    return [
        node.name
        for node in _tree(source).body
        if isinstance(node, ast.ClassDef)
        and {"get_ref_answer", "step"}
        <= {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    ][:1]


# -- texts ----------------------------------------------------------------------------------------


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in _tree(_text(path)).body if isinstance(node, ast.ClassDef)]


def _tree(source: str) -> ast.Module:
    """Of a text that cannot be parsed an empty one."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _last(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    decode = msgspec.json.Decoder(kind).decode
    try:
        lines: Sequence[bytes] = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error


def _plain(value: Any) -> Config | None:
    """A dict as JSON has it; None for what is none there."""
    try:
        config = msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None
    return config if isinstance(config, dict) else None
