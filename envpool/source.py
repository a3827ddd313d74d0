"""`PoolSource`: the environments that a pool's `module:attribute` names, and how tasks are drawn.

The coordinator draws tasks with it, and a zygote serves the same source, so both import it. Neither
torch nor ray may be imported on the way.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Protocol

import envpool
from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.blame import defined_at, in_words, raised_at
from envpool.env import ToolEnv
from envpool.task import Config, PoolKey, Split, Task, config_split
from envpool.tools import DefinitionError

# Draws before `draw` gives up. One in eight configurations is for evaluation, so that a generator
# with enough configurations fails this often with probability (7/8)^1000.
MAX_DRAWS = 1000
NO_CONFIGURATION = (
    "env {!r} of pool {} gave no {} configuration of level {} in {} draws: its sample() must draw from "
    "more configurations"
)


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


class Source(Protocol):
    """A pool as the coordinator sees it, whether its code is imported here or not."""

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
    def draw(self, env_id: str, rng: Random, split: Split, level: int = 0) -> Config: ...
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
    """The file of the module that the pool's source names."""

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.name, self.version)

    @classmethod
    def load(cls, name: str, section: PoolSection) -> "PoolSource":
        """Import the source of pool `name`; raises ConfigError for what is not there."""
        check_package()
        envs = _find_envs(name, section.source)
        for env_id in section.train:
            if env_id not in envs:
                raise ConfigError(f"pools.{name}.train: no env {env_id!r}; {near(env_id, envs)}")
        return cls(
            name=name,
            version=_version(envs),
            envs=envs,
            train=tuple(section.train or envs),
            trusted=section.trusted,
            file=getattr(sys.modules[section.source.partition(":")[0]], "__file__", None) or "",
        )

    def env(self, env_id: str) -> type[ToolEnv]:
        """The class behind an id; raises ConfigError for an unknown one."""
        if env_id not in self.envs:
            raise ConfigError(f"pool {self.name} has no env {env_id!r}; {near(env_id, self.envs)}")
        return self.envs[env_id]

    def draw(self, env_id: str, rng: Random, split: Split, level: int = 0) -> Config:
        """Draw a configuration of `split`; raises ConfigError if the generator fails or gives none."""
        env = self.env(env_id)
        try:
            for _ in range(MAX_DRAWS):
                config = env.sample(rng, level)
                if config_split(env_id, config) is split:
                    return config
        except Exception as error:  # whatever an author's generator raises now and then
            raise ConfigError(
                f"env {env_id!r} of pool {self.name}: {env.__name__}.sample() raised "
                f"{in_words(error)} at {raised_at(error)}: it must give a configuration every time"
            ) from error
        raise ConfigError(NO_CONFIGURATION.format(env_id, self.name, split, level, MAX_DRAWS))

    def task(self, env_id: str, config: Config, seed: int) -> Task:
        self.env(env_id)
        return Task(pool=self.name, pool_version=self.version, env=env_id, config=config, seed=seed)


def _find_envs(name: str, source: str) -> dict[str, type[ToolEnv]]:
    where = f"pools.{name}.source={source!r}"
    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{where} is not module:attribute")
    module = _import(where, module_name)
    envs = getattr(module, attribute, None)
    if envs is None:
        names = [word for word in vars(module) if not word.startswith("_")]
        raise ConfigError(f"{where}: {module_name} has no {attribute!r}; {near(attribute, names)}")
    if not isinstance(envs, Mapping) or not envs:
        raise ConfigError(f"{where} must be a mapping from env ids to ToolEnv classes")
    for env_id, env in envs.items():
        if not isinstance(env, type) or not issubclass(env, ToolEnv):
            raise ConfigError(f"{where}: {env_id!r} is {env!r}, not a ToolEnv class")
        if not isinstance(getattr(env, "Config", None), type):
            raise ConfigError(
                f"{where}: {defined_at(env)}: class {env.__qualname__} (env {env_id!r}) has no Config: "
                "set Config to a msgspec.Struct of what the policy cannot see"
            )
    return dict(envs)


def _import(where: str, name: str) -> ModuleType:
    """Import a module of an author; raises ConfigError with file and line of what is wrong in it."""
    try:
        return importlib.import_module(name)
    except DefinitionError as error:
        place = "" if error.place else f"{raised_at(error)}: "
        raise ConfigError(f"{where}: {place}{error}") from error
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{where}: {error}; put it beside the recipe or on PYTHONPATH, or correct the name"
            ) from error
        raise ConfigError(
            f"{where}: {raised_at(error)}: {error}; install it, or correct the import"
        ) from error
    # Whatever an author's module does while it is imported, which may also be sys.exit().
    except (Exception, SystemExit) as error:
        place = f"{raised_at(error)}: " if raised_at(error) else ""
        raise ConfigError(
            f"{where}: {place}{in_words(error)}: correct it; the module could not be imported"
        ) from error


def _version(envs: Mapping[str, type[ToolEnv]]) -> str:
    """Hash of which class each id names, and of the text of all files these classes come from."""
    digest = hashlib.sha256()
    files: set[Path] = set()
    for env_id in sorted(envs):
        env = envs[env_id]
        digest.update(f"{env_id}={env.__module__}:{env.__qualname__}\n".encode())
        bases = [base for base in env.__mro__ if issubclass(base, ToolEnv)]
        for module_name in {base.__module__ for base in bases} | {env.Config.__module__}:
            files |= _files(module_name)
    for path in sorted(files):
        digest.update(f"{path.name}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(module_name: str) -> set[Path]:
    """The source files that decide what a module does: its package's, or its own if it has none."""
    module = importlib.import_module(module_name)
    found = inspect.getsourcefile(module)
    if found is None:
        raise ConfigError(f"module {module_name} has no source file to hash: keep it in one")
    path = Path(found)
    if module_name == ToolEnv.__module__:
        return {path, path.with_name("tools.py")}
    return set(path.parent.glob("*.py")) if module.__package__ else {path}
