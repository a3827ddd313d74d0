"""`PoolSource`: the environments that a pool's source names, and how tasks are drawn.

A source is `module:attribute` (a mapping from ids to classes, or a function that gives one), the name of
an entry point of the group `millrace.pools` that names such, or the path of a file or directory
(`envpool/folder.py`). Neither torch nor ray may be imported on the way.
"""

import hashlib
import importlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from random import Random
from typing import Any, Protocol

import envpool
from configs.load import ConfigError
from configs.schema import PoolSection
from envpool import folder as folders
from envpool.blame import defined_at, in_words, raised_at
from envpool.env import ToolEnv
from envpool.importing import import_module
from envpool.task import (
    VARIATION,
    Config,
    PoolKey,
    Split,
    Task,
    config_digest,
    config_split,
)

# Group of entry points under which packages offer pools.
ENTRY_POINTS = "millrace.pools"
# Draws before `draw` gives up. One in eight configurations is for evaluation, so that a generator
# with enough configurations fails this often with probability (7/8)^1000.
MAX_DRAWS = 1000


def check_package() -> None:
    """Raise ImportError unless `envpool` is this package: PyPI has another one of that name."""
    ours = Path(__file__).parent
    found = envpool.__file__
    if found is None or Path(found).parent != ours:
        raise ImportError(f"`envpool` is {found}, not {ours}: uninstall the other package")


def near(word: str, words: Iterable[str]) -> str:
    """What an unknown `word` may have meant, for an error message."""
    known = sorted(words)
    close = get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def no_configuration(pool: str, env_id: str, split: Split | None, level: int, draws: int) -> str:
    """What is said of an environment that gave none in so many draws."""
    wanted = f"{split} configuration" if split else "configuration"
    return (
        f"env {env_id!r} of pool {pool} gave no {wanted} of level {level} in {draws} draws: its sample() "
        "must draw from more configurations"
    )


class Source(Protocol):
    """A pool as the coordinator sees it, whether its code is imported here or not.

    Where a split can be given, None is either: all configurations alike.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def key(self) -> PoolKey: ...
    @property
    def envs(self) -> Collection[str]: ...
    @property
    def train(self) -> tuple[str, ...]: ...
    @property
    def file(self) -> str: ...
    def draw(self, env_id: str, rng: Random, split: Split | None, level: int = 0) -> Config: ...
    def count(self, env_id: str, split: Split | None, level: int = 0) -> int | None: ...
    def task(self, env_id: str, config: Config, seed: int) -> Task: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class PoolSource:
    """The environments of one pool. `version` is the content hash of their code."""

    name: str
    version: str
    envs: Mapping[str, type[ToolEnv]]
    train: tuple[str, ...]
    """Ids to train on."""
    trusted: bool
    file: str = ""
    """The file of the module that the pool's source names, or the directory of its copy."""
    tasks: folders.Tasks = field(default_factory=dict)
    """Configurations by id and level, of environments whose `sample` is not asked."""

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.name, self.version)

    @classmethod
    def load(cls, name: str, section: PoolSection, *, folder: str = "") -> "PoolSource":
        """Import the source of pool `name`; raises ConfigError for what is not there.

        `folder` is the copy that a path is served from, by a process of its own.
        """
        check_package()
        where = f"pools.{name}.source={section.source!r}"
        tasks: folders.Tasks = {}
        if folders.is_path(section.source):
            envs, tasks = folders.load(where, Path(folder))
            file = folder
        else:
            envs, file = _find_envs(where, module_of(name, section.source))
        _check_classes(where, envs)
        for env_id in section.train:
            if env_id not in envs:
                raise ConfigError(f"pools.{name}.train: no env {env_id!r}; {near(env_id, envs)}")
        return cls(
            name=name,
            version=_version(envs, Path(folder) if folder else None),
            envs=envs,
            train=tuple(section.train or envs),
            trusted=section.trusted,
            file=file,
            tasks=tasks,
        )

    def env(self, env_id: str) -> type[ToolEnv]:
        """The class behind an id; raises ConfigError for an unknown one."""
        if env_id not in self.envs:
            raise ConfigError(f"pool {self.name} has no env {env_id!r}; {near(env_id, self.envs)}")
        return self.envs[env_id]

    def sample(self, env_id: str, rng: Random, level: int) -> Config:
        """A configuration: one of those listed, or what the environment draws. Raises what that raises."""
        if any(env == env_id for env, _ in self.tasks):
            return rng.choice(self.tasks[env_id, level])
        return self.env(env_id).sample(rng, level)

    def draw(self, env_id: str, rng: Random, split: Split | None, level: int = 0) -> Config:
        """Draw a configuration of `split`; raises ConfigError if the generator fails or gives none."""
        env = self.env(env_id)
        try:
            for _ in range(MAX_DRAWS):
                config = self.sample(env_id, rng, level)
                if split is None or config_split(env_id, config) is split:
                    return config
        except Exception as error:  # whatever an author's generator raises now and then
            raise ConfigError(
                f"env {env_id!r} of pool {self.name}: {env.__name__}.sample() raised "
                f"{in_words(error)} at {raised_at(error)}: it must give a configuration every time"
            ) from error
        raise ConfigError(no_configuration(self.name, env_id, split, level, MAX_DRAWS))

    def count(self, env_id: str, split: Split | None, level: int = 0) -> int | None:
        """How many configurations of `split` are listed; None where `sample` makes ever new ones."""
        if not any(env == env_id for env, _ in self.tasks):
            return None
        listed = self.tasks.get((env_id, level), [])
        return len(
            {
                config_digest(env_id, config)
                for config in listed
                if split is None or config_split(env_id, config) is split
            }
        )

    def task(self, env_id: str, config: Config, seed: int) -> Task:
        self.env(env_id)
        return Task(pool=self.name, pool_version=self.version, env=env_id, config=config, seed=seed)


def module_of(name: str, source: str) -> str:
    """`module:attribute` behind a source that is no path; raises ConfigError for what is neither."""
    if ":" in source:
        return source
    found = entry_points(group=ENTRY_POINTS)
    for point in found:
        if point.name == source:
            return point.value
    known = f"; {near(source, (point.name for point in found))}" if found else ""
    raise ConfigError(
        f"pools.{name}.source={source!r} is not module:attribute, not the path of a .py file or "
        f"directory (./{source}), and no installed package has it as an entry point of "
        f"{ENTRY_POINTS!r}{known}"
    )


def _find_envs(where: str, source: str) -> tuple[dict[str, type[ToolEnv]], str]:
    """The environments that `module:attribute` gives, and the module's file."""
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{where} is not module:attribute")
    module = import_module(where, module_name)
    envs = getattr(module, attribute, None)
    if envs is None:
        names = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no {attribute!r}; {near(attribute, names)}")
    if callable(envs) and not isinstance(envs, type):
        try:
            envs = envs()
        except Exception as error:  # whatever an author's function raises
            raise ConfigError(
                f"{where}: {attribute}() raised {in_words(error)} at {raised_at(error)}: it must return "
                "a mapping from env ids to ToolEnv classes"
            ) from error
    if not isinstance(envs, Mapping) or not envs:
        raise ConfigError(f"{where} must be a mapping from env ids to ToolEnv classes")
    return dict(envs), getattr(module, "__file__", None) or ""


def _check_classes(where: str, envs: Mapping[Any, Any]) -> None:
    """Raise ConfigError for what is no environment."""
    if not envs:
        raise ConfigError(f"{where} has no ToolEnv class in its .py files (`_*` are not looked at)")
    for env_id, env in envs.items():
        if not isinstance(env, type) or not issubclass(env, ToolEnv):
            raise ConfigError(f"{where}: {env_id!r} is {env!r}, not a ToolEnv class")
        if not isinstance(getattr(env, "Config", None), type):
            raise ConfigError(
                f"{where}: {defined_at(env)}: class {env.__qualname__} (env {env_id!r}) has no Config: "
                "set Config to a msgspec.Struct of what the policy cannot see"
            )
        if VARIATION in getattr(env.Config, "__struct_fields__", ()):
            raise ConfigError(
                f"{where}: {defined_at(env)}: class {env.__qualname__} (env {env_id!r}): its Config has a "
                f"field {VARIATION!r}, which is reserved in configurations: give it another name"
            )


def _version(envs: Mapping[str, type[ToolEnv]], folder: Path | None) -> str:
    """Hash of which class each id names, and of the text of all files these classes come from.

    In a `folder` these are all there are.
    """
    digest = hashlib.sha256()
    files: dict[Path, str] = {}
    for env_id in sorted(envs):
        env = envs[env_id]
        digest.update(f"{env_id}={env.__module__}:{env.__qualname__}\n".encode())
        bases = [base for base in env.__mro__ if issubclass(base, ToolEnv)]
        for module_name in {base.__module__ for base in bases} | {env.Config.__module__}:
            files |= {path: path.name for path in _files(module_name)}
    if folder is not None:
        paths = (path for path in folder.rglob("*") if path.suffix != ".pyc" and path.is_file())
        files |= {path: path.relative_to(folder).as_posix() for path in paths}
    # By name: where a copy lies differs from machine to machine.
    for name, text in sorted((name, path.read_bytes()) for path, name in files.items()):
        digest.update(f"{name}\n".encode() + text)
    return digest.hexdigest()[:16]


def _files(module_name: str) -> set[Path]:
    """The source files that decide what a module does: its package's, or its own if it has none."""
    module = importlib.import_module(module_name)
    found = inspect.getsourcefile(module)
    if found is None:
        raise ConfigError(f"module {module_name} has no source file to hash: keep it in one")
    path = Path(found)
    if module_name == ToolEnv.__module__:
        return {path, path.with_name("tools.py"), *path.parent.glob("vari*.py")}
    return set(path.parent.glob("*.py")) if module.__package__ else {path}
