"""`Hosts`: sessions on the hosts of a machine or a cluster, as if their pool were here.

    Hosts.open(task) -> Session -- Act --> host A --> process       A dies: the session is played again on
                              (record) -- Act --> host B --> process    B, or on A's successor

The record of a session is kept here, so that no host has anything that could be lost.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import folder as folders
from envpool.frames import Outcome
from envpool.hostlink import GRACE_S, RETRY_S, HostGone, HostLink, RemoteFault
from envpool.lasting import Opens, Session
from envpool.link import (
    Act,
    Acted,
    Done,
    DrawFrom,
    DrawnFrom,
    Leave,
    Open,
    Opened,
    PluggedIn,
    PlugIn,
    Question,
    TryOut,
)
from envpool.nursery import Death
from envpool.pool import Plugged
from envpool.session import EnvFault, StepResult
from envpool.task import Config, PoolKey, Task

_log = logging.getLogger(__name__)

A = TypeVar("A")


class RemoteLife:
    """An episode in a process of a host, as long as both last: the counterpart of `Life`."""

    def __init__(self, host: HostLink, opened: Opened, *, step_timeout_s: float) -> None:
        self.prompt = opened.prompt
        self.tools: list[dict[str, Any]] = opened.tools
        self.pid = opened.pid
        self.is_over = False
        self.death: Death | None = None
        self._host = host
        self._session = opened.session
        self._step_timeout_s = step_timeout_s
        self._num_steps = 0
        host.lives.add(self)

    async def step(self, action: str) -> StepResult:
        """Carry out one action. Raises EnvFault, after which it is of no more use."""
        self._num_steps += 1
        act = Act(
            id=self._host.next_id(), session=self._session, number=self._num_steps, action=action
        )
        try:
            acted = await self._host.ask(act, Acted, self._step_timeout_s + GRACE_S)
        except HostGone as error:
            self.lose()
            raise EnvFault(Outcome.CRASHED, str(error)) from error
        except RemoteFault as fault:
            if fault.death is not None:
                self.is_over, self.death = True, fault.death
            raise
        except asyncio.CancelledError:
            self._leave()  # it may be busy for long
            raise
        return acted.result

    async def close(self) -> None:
        """End it. Safe to call again."""
        if self not in self._host.lives:
            return
        self._host.lives.discard(self)
        leave = Leave(id=self._host.next_id(), session=self._session)
        try:
            await self._host.ask(leave, Done, GRACE_S)
        except HostGone:
            self.lose()

    def lose(self) -> None:
        """The host is gone, and the process with it."""
        self.is_over = True
        self.death = self.death or Death.LOST

    def _leave(self) -> None:
        if self in self._host.lives:
            self._host.lives.discard(self)
            self._host.tell(Leave(id=self._host.next_id(), session=self._session))


class Hosts(Opens):
    """Some hosts as one env pool. Close it; `async with` does."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        limits: EnvPoolSection,
        token: str = "",
        num_near: int | None = None,
    ) -> None:
        """The first `num_near` hosts share the sessions; the others are used when none of these is there."""
        if not addresses:
            raise ConfigError("no host of environments is given: name at least one")
        self._limits = limits
        self._pools: dict[PoolKey, PlugIn] = {}
        self._plugged: dict[PoolKey, Plugged] = {}
        self._newest: dict[str, PoolKey] = {}
        self._retired: set[PoolKey] = set()
        self._hosts = [HostLink(address, token, self._pools) for address in addresses]
        self._num_near = len(addresses) if num_near is None else num_near
        self._is_closed = False

    @classmethod
    async def start(
        cls,
        addresses: Sequence[str],
        sections: Mapping[str, PoolSection] | None = None,
        *,
        limits: EnvPoolSection,
        token: str = "",
        num_near: int | None = None,
    ) -> "Hosts":
        """Connect and have the hosts serve some pools. Raises ConfigError for what cannot be."""
        hosts = cls(addresses, limits=limits, token=token, num_near=num_near)
        try:
            for name, section in (sections or {}).items():
                await hosts.plug(name, section)
        except BaseException:
            await hosts.close()
            raise
        return hosts

    async def plug(
        self, name: str, section: PoolSection, *, files: Mapping[str, bytes] | None = None
    ) -> Plugged:
        """Have every host that is there serve a version of a pool; those that come back serve it too.

        Raises ConfigError for what is wrong with it, and where there is no host.
        """
        if files is None and folders.is_path(section.source):
            where = f"pools.{name}.source={section.source!r}"
            files = await asyncio.to_thread(folders.read, where, section.source)
        plugged: Plugged | None = None
        try:
            there = await self._reachable()
        except EnvFault as fault:
            raise ConfigError(f"pools.{name}: {fault.message}") from fault
        async with asyncio.TaskGroup() as group:
            asking = [
                group.create_task(_told(self._plug_in(host, name, section, files)), name=name)
                for host in there
            ]
        for answered in asking:
            found, error = answered.result()
            if error is not None:
                raise ConfigError(str(error)) from error
            plugged = found or plugged
        if plugged is None:
            raise ConfigError(f"pools.{name}: every host is gone")
        question = PlugIn(id=0, name=name, section=section, files=files)
        self._pools[plugged.key] = question
        self._plugged[plugged.key] = plugged
        self._newest[name] = plugged.key
        self._retired.discard(plugged.key)
        return plugged

    async def retire(self, key: PoolKey) -> None:
        """Open no more sessions of a version. Safe to call again."""
        self._retired.add(key)
        self._pools.pop(key, None)
        self._plugged.pop(key, None)
        if self._newest.get(key.name) == key:
            del self._newest[key.name]
        for host in self._hosts:
            host.retire(key)

    def versions(self) -> dict[str, str]:
        """Content hash of the code served, by pool: that of the version plugged in last."""
        return {name: key.version for name, key in self._newest.items()}

    def envs(self) -> dict[str, list[str]]:
        """Ids of the environments, by pool."""
        return {name: self._plugged[key].envs for name, key in self._newest.items()}

    def layers(self) -> dict[str, list[str]]:
        """What isolates the code of a pool, by pool."""
        return {name: self._plugged[key].layers for name, key in self._newest.items()}

    def served(self) -> list[Plugged]:
        """The versions that are served."""
        return list(self._plugged.values())

    async def open(self, task: Task) -> Session:
        """Start an episode of `task`, when there is room. Raises EnvFault."""
        if task.pool_key in self._retired:
            raise EnvFault(Outcome.CANCELLED, f"pool {task.pool} was removed or replaced")
        plug_in = self._pools.get(task.pool_key)
        is_replayable = plug_in is not None and plug_in.section.is_replayable
        step_timeout_s = self._limits.step_timeout_s
        if plug_in is not None:
            step_timeout_s = plug_in.section.step_timeout_s or step_timeout_s
        open_life = partial(self._open_life, task, step_timeout_s)
        life = await open_life()
        return Session(task.id, life, open_life if is_replayable else None)

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        """As `EnvPool.draw`."""

        def question(host: HostLink) -> DrawFrom:
            number = host.next_id()
            return DrawFrom(id=number, key=key, env=env, level=level, seed=seed, count=count)

        return (await self._ask_any(question, DrawnFrom)).configs

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        """As `EnvPool.try_env`."""
        await self._ask_any(
            lambda host: TryOut(id=host.next_id(), key=key, env=env, level=level), Done
        )

    async def close(self) -> None:
        """Leave the hosts, which close what is open. Safe to call again."""
        self._is_closed = True
        for host in self._hosts:
            await host.leave()
        await asyncio.sleep(0)  # the sockets close in the next round of the loop

    async def _plug_in(
        self, host: HostLink, name: str, section: PoolSection, files: Mapping[str, bytes] | None
    ) -> Plugged | None:
        """None when the host died meanwhile: it is told when it is back."""
        question = PlugIn(id=host.next_id(), name=name, section=section, files=files)
        try:
            answer = await host.ask(question, PluggedIn, self._patience_s)
        except HostGone:
            return None
        host.told(answer.key)
        return Plugged(key=answer.key, envs=answer.envs, layers=answer.layers)

    async def _open_life(
        self, task: Task, step_timeout_s: float, is_suspect: bool = False
    ) -> RemoteLife:
        """On the least busy host; on another where it dies meanwhile."""
        while True:
            host = min(await self._reachable(), key=lambda host: len(host.lives))
            number = host.next_id()
            try:
                # Without a deadline: it may have to wait for room.
                question = Open(id=number, task=task, is_suspect=is_suspect)
                opened = await host.ask(question, Opened, None)
            except HostGone:
                continue
            except ConfigError as error:
                raise EnvFault(Outcome.ENV_ERROR, str(error)) from error
            return RemoteLife(host, opened, step_timeout_s=step_timeout_s)

    async def _ask_any(self, question: Callable[[HostLink], Question], kind: type[A]) -> A:
        while True:
            host = (await self._reachable())[0]
            try:
                return await host.ask(question(host), kind, self._patience_s)
            except HostGone:
                continue

    async def _reachable(self) -> list[HostLink]:
        """The near hosts that are ready; the far ones if there is none; waits a while for any.

        Nobody waits for a host that does not answer while another one does. Raises EnvFault when none comes.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.start_timeout_s
        near, far = self._hosts[: self._num_near], self._hosts[self._num_near :]
        while not self._is_closed and loop.time() < deadline:
            # The far ones once it was tried in vain to reach the near ones.
            seeking: list[asyncio.Task[None]] = []
            for tier in (near, far if all(host.why_not for host in near) else []):
                seeking += [task for host in tier if not host.is_ready and (task := host.seek())]
                if ready := [host for host in tier if host.is_ready]:
                    return ready
            if seeking:
                left_s = deadline - loop.time()
                await asyncio.wait(seeking, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(RETRY_S)
        if self._is_closed:
            raise EnvFault(Outcome.CANCELLED, "the env pool is closed")
        why = "; ".join(f"{host.address}: {host.why_not or 'no answer'}" for host in self._hosts)
        # Not as a crash, which would be tried again: this took its time already.
        raise EnvFault(Outcome.ENV_ERROR, f"no host of environments can be reached: {why}")

    @property
    def _patience_s(self) -> float:
        """For what a host bounds itself: a wait for room has no bound."""
        return 10 * self._limits.start_timeout_s + GRACE_S


async def _told(work: Any) -> tuple[Plugged | None, Exception | None]:
    """A result or the mistake, so that the others of a group go on."""
    try:
        return await work, None
    except (ConfigError, EnvFault) as error:
        return None, error
