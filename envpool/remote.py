"""`Hosts`: sessions on the hosts of a machine or a cluster, as if their pool were here.

    Hosts.open(task) -> Session -- Act --> host A --> process       A dies: the session is played again on
                              (record) -- Act --> host B --> process    B, or on A's successor

The record of a session is kept here, so that no host has anything that could be lost.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self, TypeVar

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import folder as folders
from envpool.frames import Outcome
from envpool.lasting import Session
from envpool.link import (
    Act,
    Acted,
    Answer,
    Done,
    DrawFrom,
    DrawnFrom,
    Fault,
    Hello,
    Leave,
    Link,
    Open,
    Opened,
    PluggedIn,
    PlugIn,
    Question,
    Refusal,
    Retire,
    TryOut,
    decode_answer,
)
from envpool.nursery import Death
from envpool.pool import Plugged
from envpool.session import EnvFault, StepResult
from envpool.task import Config, PoolKey, Task

_log = logging.getLogger(__name__)

# A host bounds every answer itself; one that does not come at all is given up after this on top.
GRACE_S = 10.0
# How long a host may take to be connected and to serve the pools that it had, and how soon one that is
# gone is looked for again.
CONNECT_S = 30.0
RETRY_S = 0.05

A = TypeVar("A")


class HostGone(ConnectionError):
    """The connection to a host ended: what was asked may or may not have happened."""


class HostLink:
    """A connection to one host, opened when it is needed and again when it ended."""

    def __init__(self, address: str, token: str, pools: Mapping[PoolKey, PlugIn]) -> None:
        """`pools`: what it shall serve, as long as it is there."""
        self.address = address
        self.lives: set[RemoteLife] = set()
        self._token = token
        self._pools = pools
        self._link: Link | None = None
        self._connecting = asyncio.Lock()
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        # Why it is not there, and when to look again.
        self._why_not: Exception | None = None
        self._again_s = 0.0

    async def connect_or_why_not(self) -> Exception | None:
        """Be connected, to a host that serves what it shall; else say why that is not so."""
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self.is_open or loop.time() < self._again_s:
                return self._why_not
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._connect()
                self._why_not = None
            except (OSError, ConfigError, EnvFault) as error:  # TimeoutError is an OSError
                self.close()
                self._again_s = loop.time() + RETRY_S
                self._why_not = error
            return self._why_not

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        make = partial(Link, decode_answer, heard=self._heard, ended=self._ended)
        if "/" in self.address:
            _, self._link = await loop.create_unix_connection(make, self.address)
        else:
            host, _, port = self.address.rpartition(":")
            _, self._link = await loop.create_connection(make, host, int(port))
        hello = Hello(id=next(self._ids), token=self._token)
        await self.ask(hello, Done, GRACE_S)
        for plug_in in list(self._pools.values()):
            again = PlugIn(
                id=next(self._ids),
                name=plug_in.name,
                section=plug_in.section,
                files=plug_in.files,
            )
            try:
                await self.ask(again, PluggedIn, CONNECT_S)
            except ConfigError as error:  # the other pools can be served
                _log.warning("host %s is back without pool %s: %s", self.address, again.name, error)

    def next_id(self) -> int:
        return next(self._ids)

    async def ask(self, question: Question, kind: type[A], timeout_s: float | None) -> A:
        """The answer. Raises HostGone, ConfigError, EnvFault.

        A host that does not answer within `timeout_s` is given up.
        """
        link = self._link
        if link is None or not link.is_open:
            raise HostGone(f"host {self.address} is gone")
        loop = asyncio.get_running_loop()
        future = self._asked[question.id] = loop.create_future()
        timer = loop.call_later(timeout_s, self._give_up) if timeout_s is not None else None
        try:
            link.send(question)
            answer = await future
        finally:
            if timer is not None:
                timer.cancel()
            self._asked.pop(question.id, None)
        if isinstance(answer, Refusal):
            raise ConfigError(answer.error)
        if isinstance(answer, Fault):
            raise RemoteFault(answer)
        if not isinstance(answer, kind):
            raise EnvFault(Outcome.ENV_ERROR, f"host {self.address} answered {answer}")
        return answer

    def tell(self, question: Question) -> None:
        """Ask without waiting for the answer."""
        if self._link is not None:
            self._link.send(question)

    @property
    def is_open(self) -> bool:
        return self._link is not None and self._link.is_open

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _give_up(self) -> None:
        """A host that does not answer in time is as good as dead."""
        _log.warning("host %s does not answer: its sessions go elsewhere", self.address)
        self.close()

    def _heard(self, _: Link, answer: Answer) -> None:
        future = self._asked.get(answer.id)
        if future is not None and not future.done():
            future.set_result(answer)

    def _ended(self, link: Link) -> None:
        if link is not self._link:
            return
        self._link = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(HostGone(f"host {self.address} is gone"))
        for life in self.lives:
            life.lose()
        self.lives.clear()


class RemoteFault(EnvFault):
    """An EnvFault of a host, with what it knows of the process."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.outcome, fault.message)
        self.death = fault.death


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


class Hosts:
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
            if (error := answered.result()[1]) is not None:
                raise error
            plugged = answered.result()[0] or plugged
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
            if host.is_open:
                host.tell(Retire(id=host.next_id(), key=key))

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

    @asynccontextmanager
    async def session(self, task: Task) -> AsyncIterator[Session]:
        """An episode of `task` that is closed at the end of the block. Raises EnvFault."""
        async with await self.open(task) as session:
            yield session

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
            host.close()
        await asyncio.sleep(0)  # the sockets close in the next round of the loop

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _plug_in(
        self, host: HostLink, name: str, section: PoolSection, files: Mapping[str, bytes] | None
    ) -> Plugged | None:
        """None when the host died meanwhile: it is told when it is back."""
        question = PlugIn(id=host.next_id(), name=name, section=section, files=files)
        try:
            answer = await host.ask(question, PluggedIn, self._patience_s)
        except HostGone:
            return None
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
        """The near hosts that are there; the far ones if there is none; waits a while for any.

        Raises EnvFault when none comes.
        """
        errors: dict[str, Exception] = {}
        try:
            async with asyncio.timeout(self._limits.start_timeout_s):
                while not self._is_closed:
                    for tier in (self._hosts[: self._num_near], self._hosts[self._num_near :]):
                        for host in tier:
                            if (error := await host.connect_or_why_not()) is not None:
                                errors[host.address] = error
                        if there := [host for host in tier if host.is_open]:
                            return there
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            pass
        if self._is_closed:
            raise EnvFault(Outcome.CANCELLED, "the env pool is closed")
        why = "; ".join(f"{address}: {error}" for address, error in errors.items())
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
