"""`EnvPool`: opens sessions, each a process forked from the warm zygote of its pool.

    open(task) -- slot --> zygote (one per pool) -- fork --> session process -- ready --> Session

Sessions do not share anything, so that a slow, crashed or killed one delays and harms no other. All
is done on the event loop of the caller, without threads. A zygote that died is started again by the
next `open`, and by the sessions it had, which go on in new processes (`envpool/lasting.py`).
"""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Self

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import sandbox
from envpool.frames import Draw, Drawn, Outcome, Ready, Serve, Start
from envpool.lasting import Session
from envpool.nursery import Child, Nursery
from envpool.session import EnvFault, Life, StepResult, Wire, Worker
from envpool.sharing import Share, SharedProcesses
from envpool.source import near
from envpool.task import Config, Task

__all__ = ["EnvFault", "EnvPool", "Outcome", "Session", "StepResult"]

# Sessions that start at once. Forks are made one after another, so that more would only make the
# last ones miss their deadline.
MAX_STARTING = 32
# Processes of a pool that wait for their next session.
MAX_PARKED = 128
# Descriptors for everything else a process has open.
SPARE_FDS = 256

_log = logging.getLogger(__name__)


class EnvPool:
    """The zygotes of some pools and the sessions opened on them. Close it; `async with` does."""

    def __init__(
        self,
        sections: Mapping[str, PoolSection],
        nurseries: dict[str, Nursery],
        limits: EnvPoolSection,
    ) -> None:
        self._sections = sections
        self._nurseries = nurseries
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_sessions)
        self._starting = asyncio.Semaphore(MAX_STARTING)
        self._restarting = asyncio.Lock()
        # Processes with a live session, each of which holds a slot, and those between two sessions.
        self._holding: set[Child] = set()
        self._parked: dict[str, list[Worker]] = {name: [] for name in sections}
        self._shared = SharedProcesses(_fork_shared)
        self._is_closed = False

    @classmethod
    async def start(
        cls, sections: Mapping[str, PoolSection], *, limits: EnvPoolSection
    ) -> "EnvPool":
        """Start a zygote for each pool. Raises ConfigError for a pool that must not or cannot run.

        The calling thread must live as long as the pool: when it ends, the kernel ends the zygotes.
        """
        _allow_descriptors(limits.max_sessions + MAX_PARKED * len(sections) + SPARE_FDS)
        pool = cls(sections, {}, limits)
        try:
            for name, section in sections.items():
                pool._nurseries[name] = await pool._start_nursery(name, section)
        except (ConfigError, OSError, asyncio.CancelledError):
            await pool.close()
            raise
        return pool

    def versions(self) -> dict[str, str]:
        """Content hash of the code served, by pool."""
        return {name: nursery.version for name, nursery in self._nurseries.items()}

    def envs(self) -> dict[str, list[str]]:
        """Ids of the environments, by pool."""
        return {name: nursery.envs for name, nursery in self._nurseries.items()}

    def layers(self) -> dict[str, list[str]]:
        """What isolates the code of a pool, by pool; nothing for those that are trusted."""
        return {name: nursery.layers for name, nursery in self._nurseries.items()}

    def pids(self) -> dict[str, int]:
        """Process id of the zygote, by pool."""
        return {name: nursery.pid for name, nursery in self._nurseries.items()}

    def session_pids(self) -> list[int]:
        """Process ids of the live sessions; several may have one process."""
        return [child.pid for child in self._holding if child.pid] + self._shared.pids()

    async def open(self, task: Task) -> Session:
        """Start an episode of `task`, when there is room. Raises EnvFault."""
        section = self._sections.get(task.pool)
        is_replayable = section is not None and section.is_replayable
        life = await self._open_life(task)
        open_life = partial(self._open_life, task) if is_replayable else None
        return Session(task.id, life, open_life)

    async def draw(self, pool: str, env: str, *, level: int, seed: int, count: int) -> list[Config]:
        """`count` configurations of an environment, in a process of their own. Raises EnvFault."""
        await self._slots.acquire()
        worker = await self._fork(self._nurseries[pool])
        try:
            request = Draw(id=worker.next_id(), env=env, level=level, seed=seed, count=count)
            reply = await worker.ask(request, self._limits.step_timeout_s)
            if not isinstance(reply, Drawn):
                raise EnvFault(Outcome.ENV_ERROR, f"the draw was answered by {reply}")
            return reply.configs
        finally:
            await worker.close()

    async def _open_life(self, task: Task, is_suspect: bool = False) -> Life:
        """Start an episode in a process that has room or waits for one, or in a new one.

        One that `is_suspect` of having ended the process it shared gets one of its own.
        """
        section = self._sections.get(task.pool)
        if section is not None and section.sessions_per_worker > 1 and not is_suspect:
            return await self._open_shared(task, section)
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            nursery = await self._nursery(task)
            worker = self._unpark(task.pool, nursery)
            if worker is not None:
                self._holding.add(worker.child)
                undo.pop_all()  # From here on the end of the process frees the slot.
                try:
                    return await self._start(worker, task)
                except asyncio.CancelledError:
                    worker.let_go()
                    raise
                except EnvFault:
                    # Perhaps the fault of the session before: this one gets a new process.
                    _log.info("pool %s: a used process did not start a session", task.pool)
        return await self._open_new(task)

    async def _open_shared(self, task: Task, section: PoolSection) -> Life:
        """Start an episode in a process that has others."""
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            nursery = await self._nursery(task)
            share = await self._shared.take(nursery, section)
            try:
                life = await self._start(share, task)
            except asyncio.CancelledError:
                await share.close()
                raise
            except EnvFault as fault:
                if fault.outcome is not Outcome.CRASHED:
                    raise
                _log.info("pool %s: a shared process ended: %s", task.pool, fault)
            else:
                undo.pop_all()
                return life
        return await self._open_new(task)

    async def _leave(self, share: Share) -> None:
        """A session ended that has no process of its own: its slot is free."""
        self._slots.release()
        await share.close()

    async def _open_new(self, task: Task) -> Life:
        """Start an episode in a process of its own."""
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            async with self._starting:
                nursery = await self._nursery(task)
                undo.pop_all()
                worker = await self._fork(nursery)
                undo.callback(worker.let_go)
                life = await self._start(worker, task)
                undo.pop_all()
                return life

    async def _fork(self, nursery: Nursery) -> Worker:
        """A new process, which holds the slot that the caller took; raises EnvFault.

        The slot is freed once, by the end of the process, or here where none came to be.
        """
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            child, ours = _order_fork(nursery, self._free)
            self._holding.add(child)
            undo.pop_all()
        if child.gone.is_set():  # Not forked at all: its zygote had just died.
            self._free(child)
        return await _connect(child, ours)

    def _free(self, child: Child) -> None:
        """A session ended, or its process did: its slot is free."""
        if child in self._holding:
            self._holding.discard(child)
            self._slots.release()

    def _unpark(self, pool: str, nursery: Nursery) -> Worker | None:
        """A process of this zygote that waits for its next session."""
        parked = self._parked[pool]
        while parked:
            worker = parked.pop()
            if worker.is_reusable and worker.child.nursery is nursery:
                return worker
            worker.let_go()
        return None

    async def _give_back(self, pool: str, worker: Worker) -> None:
        """Keep a session's process for the next one if its pool says so, else end it."""
        is_spent = worker.num_sessions >= self._sections[pool].sessions_per_process
        parked = self._parked[pool]
        if is_spent or self._is_closed or not worker.is_reusable or len(parked) >= MAX_PARKED:
            await worker.close()
            return
        parked.append(worker)
        self._free(worker.child)

    async def close(self) -> None:
        """End all sessions and zygotes. Safe to call again."""
        self._is_closed = True
        async with self._restarting, asyncio.TaskGroup() as group:
            for name, nursery in self._nurseries.items():
                group.create_task(nursery.close(), name=f"close pool {name}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _start(self, place: Worker | Share, task: Task) -> Life:
        place.num_sessions += 1
        request = Start(
            id=place.next_id(),
            session=place.session,
            env=task.env,
            config=task.config,
            seed=task.seed,
        )
        try:
            ready = await place.ask(request, self._limits.start_timeout_s)
            if not isinstance(ready, Ready):
                raise EnvFault(Outcome.ENV_ERROR, f"the start was answered by {ready}")
            # The session and its zygote speak over two sockets: either may be heard first.
            await place.child.forked.wait()
        except EnvFault:
            await place.close()
            raise
        if isinstance(place, Share):
            give_back = partial(self._leave, place)
        else:
            give_back = partial(self._give_back, task.pool, place)
        return Life(
            place,
            ready.prompt,
            ready.tools,
            step_timeout_s=self._limits.step_timeout_s,
            give_back=give_back,
        )

    async def _nursery(self, task: Task) -> Nursery:
        """What serves `task`, started again if it died. Raises EnvFault when nothing does."""
        if task.pool not in self._nurseries:
            hint = near(task.pool, self._nurseries)
            raise EnvFault(Outcome.ENV_ERROR, f"no pool {task.pool!r} is served; {hint}")
        async with self._restarting:
            if self._is_closed:
                raise EnvFault(Outcome.CANCELLED, "the env pool is closed")
            if not self._nurseries[task.pool].is_alive:
                await self._restart(task.pool)
        nursery = self._nurseries[task.pool]
        if nursery.version != task.pool_version:
            raise EnvFault(
                Outcome.ENV_ERROR,
                f"pool {task.pool!r} is served in version {nursery.version}, the task is of "
                f"{task.pool_version}: its code changed on disk; start the run again",
            )
        if task.env not in nursery.envs:
            hint = near(task.env, nursery.envs)
            raise EnvFault(Outcome.ENV_ERROR, f"pool {task.pool!r} has no env {task.env!r}; {hint}")
        return nursery

    async def _start_nursery(self, name: str, section: PoolSection) -> Nursery:
        serve = Serve(
            name=name,
            source=section.source,
            is_sandboxed=not section.trusted and not self._limits.allow_unsandboxed,
            memory_bytes=self._limits.memory_mb << 20,
            cpu_s=self._limits.cpu_s,
            max_processes=self._limits.max_sessions + MAX_PARKED,
        )
        return await Nursery.start(serve, self._limits.start_timeout_s)

    async def _restart(self, name: str) -> None:
        _log.warning("zygote of pool %s died: starting another", name)
        await self._nurseries[name].close()
        try:
            self._nurseries[name] = await self._start_nursery(name, self._sections[name])
        except ConfigError as error:
            raise EnvFault(Outcome.CRASHED, f"pool {name!r} cannot be served: {error}") from error


def refuse_untrusted(sections: Mapping[str, PoolSection], limits: EnvPoolSection) -> None:
    """Raise ConfigError for a pool whose code must not run where too little isolates it."""
    if limits.allow_unsandboxed:
        return
    for name, section in sections.items():
        if not section.trusted and (lacking := sandbox.lacking()):
            reasons = "; ".join(f"{layer}: {why}" for layer, why in lacking.items())
            raise ConfigError(
                f"pools.{name}.trusted=false, and its code cannot be isolated here ({reasons}): set "
                f"pools.{name}.trusted=true if you trust it, or envpool.allow_unsandboxed=true"
            )


def _order_fork(
    nursery: Nursery, when_gone: Callable[[Child], None]
) -> tuple[Child, socket.socket]:
    """A process that is being forked, and our end of its socket."""
    ours, theirs = _socketpair()
    return nursery.fork(theirs, when_gone), ours


async def _connect(child: Child, ours: socket.socket) -> Worker:
    wire = Wire()
    worker = Worker(child, wire)
    try:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: wire, sock=ours)
    except BaseException:
        worker.let_go()
        raise
    return worker


async def _fork_shared(nursery: Nursery) -> Worker:
    """A new process for several sessions, each of which holds a slot of its own."""
    return await _connect(*_order_fork(nursery, lambda _: None))


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        message = f"no socket for a session: {error}; raise the limit on open files (ulimit -n)"
        raise EnvFault(Outcome.ENV_ERROR, message) from error
    ours.setblocking(False)
    return ours, theirs


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files: a session takes one, and 1,024 is a common limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        # The hard limit is never infinite on Linux (fs.nr_open bounds it).
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
