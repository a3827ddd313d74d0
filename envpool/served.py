"""`Served`: one version of a pool as long as it is served: its zygote, and processes that wait.

    plugged in --> serves new sessions --> retired: the open ones go on --> closed with the last of them

A zygote that died is started again by whoever needs it next, from the same code.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import folder as folders
from envpool.frames import Outcome, Serve
from envpool.nursery import Nursery
from envpool.session import EnvFault, Worker
from envpool.spawn import Root
from envpool.task import PoolKey

# Processes of a pool that wait for their next session.
MAX_PARKED = 128

_log = logging.getLogger(__name__)


class PoolLimits:
    """What holds for the sessions of one pool: its own limits, and those of all pools."""

    def __init__(self, section: PoolSection, common: EnvPoolSection) -> None:
        self.start_timeout_s = common.start_timeout_s
        self.step_timeout_s = section.step_timeout_s or common.step_timeout_s
        self.memory_bytes = (section.memory_mb or common.memory_mb) << 20
        self.cpu_s = section.cpu_s or common.cpu_s
        self.pool_memory_bytes = common.pool_memory_mb << 20
        self.max_processes = common.max_sessions + MAX_PARKED
        self.is_sandboxed = not section.trusted and not common.allow_unsandboxed


class Served:
    """A pool's code, the zygote that has it imported, and who uses it."""

    def __init__(
        self, name: str, section: PoolSection, folder: Path | None, limits: PoolLimits
    ) -> None:
        """`folder`: the copy of a pool whose source is a path."""
        self.section = section
        self.limits = limits
        self.parked: list[Worker] = []
        """Processes between two sessions, or before their first."""
        self.num_sessions = 0
        """Open ones, also while their process is being replaced."""
        self.is_retired = False
        self.is_forking_spares = False
        self._name = name
        self._folder = folder
        self._nursery: Nursery | None = None
        self._restarting = asyncio.Lock()
        self._is_closed = False

    @property
    def nursery(self) -> Nursery:
        """The newest zygote, dead or alive."""
        assert self._nursery is not None, "started"
        return self._nursery

    @property
    def key(self) -> PoolKey:
        """Name and content hash."""
        return PoolKey(self._name, self._version)

    async def start(self, root: Callable[[], Root]) -> None:
        """Import the code. Raises ConfigError for what is wrong with it."""
        self._nursery = await self._start_nursery(root)
        self._version = self._nursery.version

    async def alive(self, root: Callable[[], Root]) -> Nursery:
        """A zygote that lives as far as one can know. Raises EnvFault when there is none."""
        async with self._restarting:
            if self._is_closed:  # while this waited for room
                raise EnvFault(Outcome.CANCELLED, f"pool {self._name} was removed or replaced")
            if not self.nursery.is_alive:
                _log.warning("zygote of pool %s died: starting another", self._name)
                await self.nursery.close()
                try:
                    self._nursery = await self._start_nursery(root)
                except (ConfigError, OSError) as error:
                    raise EnvFault(
                        Outcome.CRASHED, f"pool {self._name!r} cannot be served: {error}"
                    ) from error
        nursery = self.nursery
        if nursery.version != self._version:
            raise EnvFault(
                Outcome.ENV_ERROR,
                f"pool {self._name!r} is served in version {nursery.version}, the task is of "
                f"{self._version}: its code changed on disk; start the run again",
            )
        return nursery

    def unpark(self, nursery: Nursery) -> Worker | None:
        """A process of this zygote that waits for its next session."""
        while self.parked:
            worker = self.parked.pop()
            if worker.is_reusable and worker.child.nursery is nursery:
                return worker
            worker.let_go()
        return None

    async def close(self) -> None:
        """End all its sessions and its zygote, and forget its code."""
        async with self._restarting:
            self._is_closed = True
            self.parked.clear()
            if self._nursery is not None:
                await self._nursery.close()
        if self._folder is not None:
            await asyncio.to_thread(folders.remove, self._folder)

    async def _start_nursery(self, root: Callable[[], Root]) -> Nursery:
        limits = self.limits
        serve = Serve(
            name=self._name,
            section=self.section,
            folder=str(self._folder or ""),
            is_sandboxed=limits.is_sandboxed,
            memory_bytes=limits.memory_bytes,
            cpu_s=limits.cpu_s,
            max_processes=limits.max_processes,
            pool_memory_bytes=limits.pool_memory_bytes,
        )
        try:
            try:
                return await Nursery.start(root(), serve, limits.start_timeout_s)
            except ConnectionError:  # the root died since it was used last
                return await Nursery.start(root(), serve, limits.start_timeout_s)
        except ConfigError as error:
            raise ConfigError(self.in_their_words(str(error))) from error

    def in_their_words(self, text: str) -> str:
        """A message about the copy, as one about what was copied."""
        if self._folder is None:
            return text
        source = Path(self.section.source).expanduser()
        return text.replace(
            str(self._folder), str(source.parent if source.suffix == ".py" else source)
        )
