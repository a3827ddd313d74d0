"""`EnvPool`: opens sessions, each a process forked from the warm zygote of its pool.

    open(task) -- slot --> zygote (one per version of a pool) -- fork --> process -- ready --> Session

Sessions do not share anything, so that a slow, crashed or killed one delays and harms no other. All
is done on the event loop of the caller. A zygote that died is started again by the next `open`, and by
the sessions it had, which go on in new processes (`envpool/lasting.py`). Versions of pools are plugged in
and retired while sessions run.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakSet

import msgspec

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import sockets
from envpool.folder import Copies
from envpool.frames import Draw, Drawn, Outcome, Ready, Reply, Start, Tried, Try
from envpool.lasting import Opens, Session
from envpool.nursery import Child, Nursery
from envpool.served import MAX_PARKED, PoolLimits, Served
from envpool.session import EnvFault, Life, StepResult, Worker
from envpool.sharing import Share, SharedProcesses
from envpool.source import near
from envpool.spawn import Root
from envpool.task import Config, PoolKey, Task
from envpool.trust import refuse_untrusted

__all__ = ["EnvFault", "EnvPool", "Outcome", "Plugged", "Session", "StepResult"]

# Sessions that start at once. Forks are made one after another, so that more would only make the
# last ones miss their deadline.
MAX_STARTING = 32
# Descriptors for everything else a process has open.
SPARE_FDS = 256

_log = logging.getLogger(__name__)


class Plugged(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a pool that is served."""

    key: PoolKey
    envs: list[str]
    """Ids of the environments."""
    layers: list[str]
    """What isolates its code; nothing for a pool that is trusted."""


class EnvPool(Opens):
    """Versions of pools and the sessions opened on them. Close it; `async with` does."""

    def __init__(self, limits: EnvPoolSection) -> None:
        self._limits = limits
        self._served: dict[PoolKey, Served] = {}
        # The version of a name that was plugged in last.
        self._newest: dict[str, PoolKey] = {}
        self._root: Root | None = None
        self._copies = Copies()
        self._plugging = asyncio.Lock()
        self._slots = asyncio.Semaphore(limits.max_sessions)
        self._starting = asyncio.Semaphore(MAX_STARTING)
        # Processes with a live session, each of which holds a slot.
        self._holding: set[Child] = set()
        self._shared = SharedProcesses(sockets.fork_shared)
        self._lives: WeakSet[Life] = WeakSet()
        self._reaping: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @classmethod
    async def start(
        cls, sections: Mapping[str, PoolSection] | None = None, *, limits: EnvPoolSection
    ) -> "EnvPool":
        """Serve some pools to begin with. Raises ConfigError for one that must not or cannot run.

        The calling thread must live as long as the pool: when it ends, the kernel ends the zygotes.
        """
        pool = cls(limits)
        sockets.allow_descriptors(limits.max_sessions + SPARE_FDS)
        try:
            pool._living_root()
            for name, section in (sections or {}).items():
                await pool.plug(name, section)
        except BaseException:
            await pool.close()
            raise
        pool._reaping = asyncio.create_task(pool._reap_idle(), name="reap idle sessions")
        return pool

    async def plug(
        self, name: str, section: PoolSection, *, files: Mapping[str, bytes] | None = None
    ) -> Plugged:
        """Serve a version of a pool, beside the versions served already.

        `files`: the text of a source that is a path of another machine. Nothing changes if this
        version is served already. Raises ConfigError for what is wrong with it.
        """
        # Beside the loop: what it looks for, it looks for with a process the first time.
        await asyncio.to_thread(refuse_untrusted, {name: section}, self._limits)
        async with self._plugging:
            if self._is_closed:
                raise ConfigError(f"pools.{name}: the env pool is closed")
            limits = PoolLimits(section, self._limits)
            served = Served(name, section, await self._copies.add(name, section, files), limits)
            try:
                await served.start(self._living_root)
                key = served.key
                known = self._served.get(key)
                if known is None:
                    self._served[key] = served
            except BaseException:
                await served.close()
                raise
            if known is not None:
                known.section, known.limits, known.is_retired = section, limits, False
            self._newest[name] = key
            plugged = self._plugged(key)
            if known is not None:
                await served.close()
            sockets.allow_descriptors(
                self._limits.max_sessions + MAX_PARKED * len(self._served) + SPARE_FDS
            )
            return plugged

    async def retire(self, key: PoolKey) -> None:
        """Open no more sessions of a version; it is gone with the last one. Safe to call again."""
        served = self._served.get(key)
        if served is None:
            return
        served.is_retired = True
        if self._newest.get(key.name) == key:
            del self._newest[key.name]
        await self._forget(served)

    def served(self) -> list[Plugged]:
        """The versions that are served, those that are retired but in use among them."""
        return [self._plugged(key) for key in self._served]

    def versions(self) -> dict[str, str]:
        """Content hash of the code served, by pool: that of the version plugged in last."""
        return {name: key.version for name, key in self._newest.items()}

    def envs(self) -> dict[str, list[str]]:
        """Ids of the environments, by pool."""
        return {name: self._plugged(key).envs for name, key in self._newest.items()}

    def layers(self) -> dict[str, list[str]]:
        """What isolates the code of a pool, by pool; nothing for those that are trusted."""
        return {name: self._plugged(key).layers for name, key in self._newest.items()}

    def pids(self) -> dict[str, int]:
        """Process id of the zygote, by pool."""
        return {name: self._served[key].nursery.pid for name, key in self._newest.items()}

    @property
    def root_pid(self) -> int:
        """Process id of what zygotes are forked from."""
        return self._root.pid if self._root is not None else 0

    def session_pids(self) -> list[int]:
        """Process ids of the live sessions; several may have one process."""
        return [child.pid for child in self._holding if child.pid] + self._shared.pids()

    async def open(self, task: Task) -> Session:
        """Start an episode of `task`, when there is room. Raises EnvFault."""
        served = self._find(task)
        if served.is_retired:
            raise EnvFault(Outcome.CANCELLED, f"pool {task.pool} was removed or replaced")
        served.num_sessions += 1
        try:
            life = await self._open_life(served, task)
        except BaseException:
            self._leave(served)
            raise
        open_life = partial(self._open_life, served, task) if served.section.is_replayable else None
        return Session(task.id, life, open_life, when_closed=partial(self._leave, served))

    async def open_life(self, task: Task, is_suspect: bool = False) -> Life:
        """Start an episode that ends with its process: for who keeps the record. Raises EnvFault.

        One that is open keeps its version served, also a retired one.
        """
        served = self._find(task)
        served.num_sessions += 1
        try:
            life = await self._open_life(served, task, is_suspect)
        except BaseException:
            self._leave(served)
            raise
        life.when_closed = partial(self._leave, served)
        return life

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        """`count` configurations of an environment, in a process of their own. Raises EnvFault.

        Of an environment whose configurations are listed: the `seed`-th `count` of them.
        """
        request = partial(Draw, env=env, level=level, seed=seed, count=count)
        reply = await self._ask(key, request)
        if not isinstance(reply, Drawn):
            raise EnvFault(Outcome.ENV_ERROR, f"the draw was answered by {reply}")
        return reply.configs

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        """Begin an episode of an environment as a check of it. Raises ConfigError for a mistake.

        Raises EnvFault when the trial itself did not end.
        """
        timeout_s = self._limits.start_timeout_s
        request = partial(Try, pool=key.name, env=env, level=level, timeout_s=timeout_s)
        reply = await self._ask(key, request)
        if not isinstance(reply, Tried):
            raise EnvFault(Outcome.ENV_ERROR, f"the trial was answered by {reply}")
        if reply.mistake:
            raise ConfigError(self._served[key].in_their_words(reply.mistake))

    async def close(self) -> None:
        """End all sessions and zygotes. Safe to call again."""
        self._is_closed = True
        if self._reaping is not None:
            self._reaping.cancel()
        async with self._plugging, asyncio.TaskGroup() as group:
            for key, served in self._served.items():
                group.create_task(served.close(), name=f"close pool {key.name}")
        if self._root is not None:
            await self._root.close()
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        await self._copies.close()

    # -- versions -----------------------------------------------------------------------------

    def _living_root(self) -> Root:
        """What zygotes are forked from, started again if it died. On the event loop's thread."""
        if self._root is None or not self._root.is_alive:
            if self._root is not None:
                self._in_background(self._root.close(), name="close the root that died")
            self._root = Root.spawn()
        return self._root

    def _plugged(self, key: PoolKey) -> Plugged:
        nursery = self._served[key].nursery
        return Plugged(key=key, envs=nursery.envs, layers=nursery.layers)

    def _find(self, task: Task) -> Served:
        """The version that serves `task`. Raises EnvFault when none does."""
        served = self._served.get(task.pool_key)
        if served is None:
            newest = self._newest.get(task.pool)
            if newest is None:
                hint = near(task.pool, self._newest)
                raise EnvFault(Outcome.ENV_ERROR, f"no pool {task.pool!r} is served; {hint}")
            raise EnvFault(
                Outcome.ENV_ERROR,
                f"pool {task.pool!r} is served in version {newest.version}, the task is of "
                f"{task.pool_version}: its code changed; start the run again",
            )
        if task.env not in served.nursery.envs:
            hint = near(task.env, served.nursery.envs)
            raise EnvFault(Outcome.ENV_ERROR, f"pool {task.pool!r} has no env {task.env!r}; {hint}")
        return served

    def _leave(self, served: Served) -> None:
        """A session was closed: a retired version is gone with its last one."""
        served.num_sessions -= 1
        if served.is_retired and not served.num_sessions:
            self._in_background(self._forget(served), name=f"forget {served.key.name}")

    async def _forget(self, served: Served) -> None:
        """Close a retired version that nobody uses; it may have been plugged in again meanwhile."""
        is_unused = served.is_retired and not served.num_sessions
        if is_unused and self._served.get(served.key) is served:
            del self._served[served.key]
            await served.close()

    # -- processes ----------------------------------------------------------------------------

    async def _ask(self, key: PoolKey, request: Callable[..., Draw | Try]) -> Reply:
        """The answer of a process of its own to one request without an episode."""
        served = self._served.get(key)
        if served is None:
            raise EnvFault(Outcome.ENV_ERROR, f"pool {key.name} is not served in {key.version}")
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            nursery = await self._nursery(served)
            undo.pop_all()
        worker = await self._fork(nursery)
        try:
            return await worker.ask(request(id=worker.next_id()), self._limits.start_timeout_s)
        finally:
            await worker.close()

    async def _open_life(self, served: Served, task: Task, is_suspect: bool = False) -> Life:
        """Start an episode in a process that has room or waits for one, or in a new one.

        One that `is_suspect` of having ended the process it shared gets one of its own.
        """
        if served.section.sessions_per_worker > 1 and not is_suspect:
            return await self._open_shared(served, task)
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            nursery = await self._nursery(served)
            worker = served.unpark(nursery)
            self._refill(served)
            if worker is not None:
                self._holding.add(worker.child)
                undo.pop_all()  # From here on the end of the process frees the slot.
                try:
                    return await self._begin(served, worker, task)
                except asyncio.CancelledError:
                    worker.let_go()
                    raise
                except EnvFault:
                    # Perhaps the fault of the session before: this one gets a new process.
                    _log.info("pool %s: a used process did not start a session", task.pool)
        return await self._open_new(served, task)

    async def _open_shared(self, served: Served, task: Task) -> Life:
        """Start an episode in a process that has others."""
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            nursery = await self._nursery(served)
            share = await self._shared.take(nursery, served.section)
            try:
                life = await self._begin(served, share, task)
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
        return await self._open_new(served, task)

    async def _leave_shared(self, share: Share) -> None:
        """A session ended that has no process of its own: its slot is free."""
        self._slots.release()
        await share.close()

    async def _open_new(self, served: Served, task: Task) -> Life:
        """Start an episode in a process of its own."""
        await self._slots.acquire()
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            async with self._starting:
                nursery = await self._nursery(served)
                undo.pop_all()
                worker = await self._fork(nursery)
                undo.callback(worker.let_go)
                life = await self._begin(served, worker, task)
                undo.pop_all()
                return life

    async def _fork(self, nursery: Nursery) -> Worker:
        """A new process, which holds the slot that the caller took; raises EnvFault.

        The slot is freed once, by the end of the process, or here where none came to be.
        """
        with ExitStack() as undo:
            undo.callback(self._slots.release)
            child, ours = sockets.order_fork(nursery, self._free)
            self._holding.add(child)
            undo.pop_all()
        if child.gone.is_set():  # Not forked at all: its zygote had just died.
            self._free(child)
        return await sockets.connect(child, ours)

    def _free(self, child: Child) -> None:
        """A session ended, or its process did: its slot is free."""
        if child in self._holding:
            self._holding.discard(child)
            self._slots.release()

    def _refill(self, served: Served) -> None:
        """Have as many processes wait as shall: a fork is then no part of a start."""
        wanted = self._limits.spares if not served.is_retired else 0
        if len(served.parked) < wanted and not served.is_forking_spares:
            served.is_forking_spares = True
            self._in_background(self._fork_spares(served, wanted), name="fork spares")

    async def _fork_spares(self, served: Served, wanted: int) -> None:
        try:
            while len(served.parked) < wanted and not self._is_closed and not served.is_retired:
                async with self._starting:
                    nursery = await self._nursery(served)
                    child, ours = sockets.order_fork(nursery, self._free)  # it holds no slot yet
                    worker = await sockets.connect(child, ours)
                    await child.forked.wait()
                served.parked.append(worker)
        except EnvFault as fault:
            _log.warning("no process of pool %s is kept ready: %s", served.key.name, fault)
        finally:
            served.is_forking_spares = False

    async def _give_back(self, served: Served, worker: Worker) -> None:
        """Keep a session's process for the next one if its pool says so, else end it."""
        is_spent = worker.num_sessions >= served.section.sessions_per_process
        is_over = self._is_closed or served.is_retired
        if is_spent or is_over or not worker.is_reusable or len(served.parked) >= MAX_PARKED:
            await worker.close()
            return
        served.parked.append(worker)
        self._free(worker.child)

    async def _begin(self, served: Served, place: Worker | Share, task: Task) -> Life:
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
            give_back = partial(self._leave_shared, place)
        else:
            give_back = partial(self._give_back, served, place)
        life = Life(
            place,
            ready.prompt,
            ready.tools,
            step_timeout_s=served.limits.step_timeout_s,
            give_back=give_back,
        )
        self._lives.add(life)
        return life

    async def _nursery(self, served: Served) -> Nursery:
        """The zygote of a version, started again if it died. Raises EnvFault when there is none."""
        if self._is_closed:
            raise EnvFault(Outcome.CANCELLED, "the env pool is closed")
        return await served.alive(self._living_root)

    # -- in the background --------------------------------------------------------------------

    def _in_background(self, work: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _reap_idle(self) -> None:
        """End the processes of sessions that nobody has used for long: another continues them."""
        loop = asyncio.get_running_loop()
        patience_s = self._limits.idle_timeout_s
        while True:
            await asyncio.sleep(patience_s / 4)
            for life in list(self._lives):
                if life.is_closed or life.is_over:
                    self._lives.discard(life)
                elif life.is_alone and loop.time() - life.used_s > patience_s:
                    _log.info("a session of pid %d was idle for %g s", life.pid, patience_s)
                    life.end()
