"""What there is to audit in a directory, read as text.

    result of this factory   manifest.json, pool/<side>/*.py and tasks.jsonl, traces.jsonl
    pool of `ToolEnv`s       *.py, and tasks.jsonl where configurations are listed
    env files of CodeGym     see synth/audit_codegym.py

Nothing is imported: a class is known by its syntax tree.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from configs.load import ConfigError
from envpool import folder
from envpool.task import Config, config_digest
from synth.audit_codegym import env_files
from synth.auditable import Auditable, AuditTask, text_of, tree_of
from synth.export import MANIFEST, faults, read_manifest
from synth.records import Move

TRACES = "traces.jsonl"
# Classes of this project that environments are made of.
_BASES = frozenset({"ToolEnv", "Stepwise"})
# Directories below one without environments that a message names.
MAX_NAMED = 5


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
    found = [*_pool(directory), *env_files(directory, notes)]
    if not found:
        inner = sorted({path.parent for path in directory.glob("*/**/*.py")})[:MAX_NAMED]
        below = f"; below it are {', '.join(map(str, inner))}" if inner else ""
        raise ConfigError(
            f"{directory} holds no environments: name a result of `synth` ({MANIFEST}), a pool (.py "
            "files with a ToolEnv), or env files of CodeGym (a class with get_ref_answer in each)"
            f"{below}"
        )
    return found, notes


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


def _classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in tree_of(text_of(path)).body if isinstance(node, ast.ClassDef)]


def _last(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _lines(path: Path, kind: type[Any]) -> Iterator[Any]:
    decode = msgspec.json.Decoder(kind).decode
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}:{number}: {error}") from error
