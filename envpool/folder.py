"""Pools that are a file or a directory of sources, wherever they lie.

    pool/
      two_sum.py       each ToolEnv defined in it is an environment, `TwoSum` under the id `two_sum`
      _shared.py       not looked at, but importable
      tasks.jsonl      optional: {"env": "two_sum", "config": {...}, "level": 0}, in place of sample()

A pool is served from a copy of its own, so that files may be edited while it is: the new text is another
version.
"""

import asyncio
import importlib
import importlib.util
import inspect
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType

import msgspec

from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.blame import shorten
from envpool.env import ToolEnv
from envpool.importing import import_module
from envpool.task import Config

# What is copied is code and tasks: more is a mistake, such as a home directory.
MAX_FILES, MAX_BYTES = 2000, 8 * 2**20
TASKS = "tasks.jsonl"
# Not part of a pool.
IGNORED = frozenset({"__pycache__", "node_modules", "venv"})

Tasks = Mapping[tuple[str, int], list[Config]]


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """A line of tasks.jsonl."""

    env: str
    config: Config
    level: int = 0


def is_path(source: str) -> bool:
    """Whether a source names a file or directory, rather than a module or an entry point."""
    return source.endswith(".py") or "/" in source or source in (".", "..")


def read(where: str, source: str) -> dict[str, bytes]:
    """The files of a pool by relative path. Raises ConfigError, which begins with `where`."""
    try:
        return _read(where, Path(source).expanduser())
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise ConfigError(f"{where} cannot be read: {error}") from error


def _read(where: str, path: Path) -> dict[str, bytes]:
    if path.is_file() and path.suffix != ".py":
        raise ConfigError(f"{where} is no Python file: name a .py file, or a directory of them")
    if not path.exists():
        raise ConfigError(f"{where} does not exist (looked for {path.absolute()})")
    files: dict[str, bytes] = {}
    num_bytes = 0
    for file in [path] if path.is_file() else _walk(path):
        num_bytes += file.stat().st_size  # before it is read: it may be larger than the memory
        if len(files) == MAX_FILES or num_bytes > MAX_BYTES:
            raise ConfigError(
                f"{where} has over {MAX_FILES} files or {MAX_BYTES >> 20} MiB: name the directory that "
                "holds the pool's sources and nothing else"
            )
        files[file.relative_to(path).as_posix() if file != path else path.name] = file.read_bytes()
    if not any(name.endswith(".py") for name in files):
        raise ConfigError(f"{where} has no .py file")
    return files


def write(files: Mapping[str, bytes], folder: Path) -> None:
    """Lay files down in an empty directory, readable by every user: a sandbox has one of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name, data in files.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise ConfigError(f"the pool's file {name!r} lies outside its directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)


def remove(folder: Path) -> None:
    """Remove a copy; nothing happens where there is none."""
    shutil.rmtree(folder, ignore_errors=True)


class Copies:
    """The directory under which one process keeps its copies. Close it."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._num_copies = 0

    async def add(
        self, name: str, section: PoolSection, files: Mapping[str, bytes] | None
    ) -> Path | None:
        """A copy of a pool's files, or of `files` in their place; None for a source that is no path.

        Raises ConfigError where there is nothing to copy.
        """
        if not is_path(section.source):
            return None
        where = f"pools.{name}.source={section.source!r}"
        return await asyncio.to_thread(self._add, name, where, section.source, files)

    async def close(self) -> None:
        """Remove them all."""
        folder, self.folder = self.folder, None
        if folder is not None:
            await asyncio.to_thread(remove, folder)

    def _add(self, name: str, where: str, source: str, files: Mapping[str, bytes] | None) -> Path:
        files = read(where, source) if files is None else files
        if self.folder is None:
            self.folder = Path(mkdtemp(prefix="millrace-pools-"))
            self.folder.chmod(0o755)  # a sandbox has a user of its own
        self._num_copies += 1
        copy = self.folder / f"{name}-{self._num_copies}"
        write(files, copy)
        return copy


def load(where: str, folder: Path) -> tuple[dict[str, type[ToolEnv]], Tasks]:
    """Import the sources in `folder`: environments by id, and what tasks.jsonl lists.

    For a process that serves this pool and no other: its modules are top-level ones. Raises
    ConfigError, and whatever a module raises while it is imported.
    """
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    envs: dict[str, type[ToolEnv]] = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith(("_", "test_")):
            continue
        for env_id, env in _defined_in(_import(where, path)):
            if env_id in envs:
                raise ConfigError(
                    f"{where}: {envs[env_id].__qualname__} in {envs[env_id].__module__}.py and "
                    f"{env.__qualname__} in {path.name} are both {env_id!r}: rename one"
                )
            envs[env_id] = env
    return envs, _tasks(where, folder, envs)


def _walk(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or entry.name in IGNORED or entry.suffix == ".pyc":
            continue
        if entry.is_dir():
            yield from _walk(entry)
        elif entry.is_file():
            yield entry


def _import(where: str, path: Path) -> ModuleType:
    """Import a file as the top-level module of its name."""
    spec = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    if spec is None or spec.origin != str(path):
        taken = spec.origin if spec is not None else None
        raise ConfigError(
            f"{where}: {path.name} cannot be imported under its name, which "
            + (f"{taken} has: rename it" if taken else "is no Python identifier: rename it")
        )
    return import_module(where, path.stem)


def _defined_in(module: ModuleType) -> Iterator[tuple[str, type[ToolEnv]]]:
    for value in list(vars(module).values()):
        is_env = isinstance(value, type) and issubclass(value, ToolEnv)
        is_own = is_env and value.__module__ == module.__name__
        if is_own and not inspect.isabstract(value) and not value.__name__.startswith("_"):
            yield env_id_of(value.__name__), value


def env_id_of(class_name: str) -> str:
    """`TwoSum` is `two_sum`, `HTTPGet2` is `http_get2`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", class_name).lower()


def _tasks(where: str, folder: Path, envs: Mapping[str, type[ToolEnv]]) -> Tasks:
    path = folder / TASKS
    if not path.exists():
        return {}
    tasks: dict[tuple[str, int], list[Config]] = {}
    decode = msgspec.json.Decoder(TaskRow).decode
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{where}: {TASKS}:{number}: {shorten(str(error))}") from error
        if row.env not in envs:
            raise ConfigError(
                f"{where}: {TASKS}:{number}: no env {row.env!r}: there are {', '.join(sorted(envs))}"
            )
        tasks.setdefault((row.env, row.level), []).append(row.config)
    return tasks
