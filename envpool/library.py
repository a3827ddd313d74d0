"""`LibrarySource`: the environments of a pool that nobody trusts, as far as the coordinator may know them.

Its code never runs in the coordinator's process, where nothing isolates it. A sandboxed session draws
configurations once, before the run; tasks are then drawn from these.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Protocol

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool.pool import EnvFault, EnvPool
from envpool.source import near, no_configuration
from envpool.task import Config, PoolKey, Split, Task, config_digest, config_split

# Draws for each environment and level, and how many of them one reply holds. One in eight
# configurations is for evaluation.
DRAWS, DRAWS_AT_ONCE = 2048, 512

# Where a configuration is kept: environment, level, split. Each is on that of None as well.
Shelf = tuple[str, int, Split | None]


class Draws(Protocol):
    """Whoever has processes in which configurations are drawn: an `EnvPool`, or an actor with one."""

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]: ...
    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None: ...


class LibrarySource:
    """The environments of one pool by id, and configurations of those that a run uses."""

    trusted = False

    def __init__(self, name: str, section: PoolSection, version: str, envs: Iterable[str]) -> None:
        self.name = name
        self.version = version
        self.envs = tuple(envs)
        self.train = tuple(section.train or self.envs)
        """Ids to train on."""
        self.file = section.source
        self._shelves: dict[Shelf, list[Config]] = {}
        for env_id in self.train:
            self._check(env_id, f"pools.{name}.train")

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.name, self.version)

    async def fill_from(self, draws: Draws, used: Mapping[str, Iterable[int]]) -> None:
        """Draw configurations of environments, by id, at the levels given, and try one of each.

        Raises ConfigError for an environment that gives none or has a mistake.
        """
        for env_id, levels in used.items():
            for level in sorted(levels):
                await self._draw(draws, env_id, level)

    def check_trainable(self) -> None:
        """Raise ConfigError for an environment to train on that has no configuration for it."""
        for env_id in self.train:
            self.draw(env_id, Random(0), Split.TRAIN)

    def draw(self, env_id: str, rng: Random, split: Split | None, level: int = 0) -> Config:
        """One of the configurations of `split`; raises ConfigError when there are none."""
        shelf = self._shelves.get((env_id, level, split))
        if not shelf:
            self._check(env_id, f"pool {self.name}")
            raise ConfigError(no_configuration(self.name, env_id, split, level, DRAWS))
        return rng.choice(shelf)

    def count(self, env_id: str, split: Split | None, level: int = 0) -> int:
        """How many configurations of `split` there are to draw from."""
        return len(self._shelves.get((env_id, level, split), ()))

    def task(self, env_id: str, config: Config, seed: int) -> Task:
        self._check(env_id, f"pool {self.name}")
        return Task(pool=self.name, pool_version=self.version, env=env_id, config=config, seed=seed)

    async def _draw(self, draws: Draws, env_id: str, level: int) -> None:
        found: dict[str, Config] = {}
        try:
            for seed in range(DRAWS // DRAWS_AT_ONCE):
                drawn = await draws.draw(
                    self.key, env_id, level=level, seed=seed, count=DRAWS_AT_ONCE
                )
                found |= {config_digest(env_id, config): config for config in drawn}
            if not found:
                raise ConfigError(
                    f"pools.{self.name}: env {env_id!r} has no task of level {level} in its tasks.jsonl: "
                    "list some, or draw at another level"
                )
            await draws.try_env(self.key, env_id, level=level)
        except EnvFault as fault:
            raise ConfigError(
                f"pools.{self.name}: env {env_id!r} at level {level} does not play: {_last(fault)}"
            ) from fault
        for config in found.values():
            # Where it belongs is decided here, whatever the environment thinks of it.
            for split in (config_split(env_id, config), None):
                self._shelves.setdefault((env_id, level, split), []).append(config)

    def _check(self, env_id: str, where: str) -> None:
        if env_id not in self.envs:
            raise ConfigError(f"{where}: no env {env_id!r}; {near(env_id, self.envs)}")


# Levels by environment by pool, of which configurations are drawn.
Used = Callable[[Mapping[str, LibrarySource]], Mapping[str, Mapping[str, Iterable[int]]]]


def study(
    sections: Mapping[str, PoolSection], limits: EnvPoolSection, used: Used
) -> dict[str, LibrarySource]:
    """Import pools in their sandboxes, and draw what a run will use; where no event loop runs.

    `used` is told what they have, and says which levels of which environments, by pool. Raises
    ConfigError for what cannot be imported, gives no configuration or has a mistake.
    """
    return asyncio.run(_study(sections, limits, used)) if sections else {}


async def _study(
    sections: Mapping[str, PoolSection], limits: EnvPoolSection, used: Used
) -> dict[str, LibrarySource]:
    async with await EnvPool.start(sections, limits=limits) as pool:
        versions, envs = pool.versions(), pool.envs()
        sources = {
            name: LibrarySource(name, section, versions[name], envs[name])
            for name, section in sections.items()
        }
        for name, levels in used(sources).items():
            await sources[name].fill_from(pool, levels)
        return sources


def _last(fault: EnvFault) -> str:
    """The line that a traceback ends with."""
    return str(fault).strip().rsplit("\n", 1)[-1]
