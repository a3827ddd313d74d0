"""`HostLink`: a connection to one host of environments, opened when it is needed.

It is opened again when it ended, and the host then serves again what it shall.
"""

import asyncio
import itertools
import logging
from collections.abc import Mapping
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from configs.load import ConfigError
from envpool.frames import Outcome
from envpool.link import (
    Answer,
    Done,
    Fault,
    Hello,
    Leave,
    Link,
    Opened,
    PluggedIn,
    PlugIn,
    Question,
    Refusal,
    Retire,
    decode_answer,
)
from envpool.session import EnvFault
from envpool.task import PoolKey

_log = logging.getLogger(__name__)

# A host bounds every answer itself; one that does not come at all is given up after this on top.
GRACE_S = 10.0
# How long a host may take to be connected and to serve what it shall, and how soon one that is gone is
# looked for again.
CONNECT_S = 30.0
RETRY_S = 0.05

A = TypeVar("A")


class Loses(Protocol):
    """What is on a host, and lost with it."""

    def lose(self) -> None: ...


class HostGone(ConnectionError):
    """The connection to a host ended: what was asked may or may not have happened."""


class HostLink:
    """A connection to one host, opened when it is needed and again when it ended."""

    def __init__(self, address: str, token: str, pools: Mapping[PoolKey, PlugIn]) -> None:
        """`pools`: what it shall serve, as long as it is there."""
        self.address = address
        self.lives: set[Loses] = set()
        self._token = token
        self._pools = pools
        self._link: Link | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        # Answers that may take any time; as long as there are such, signs of life are looked for.
        self._num_patient = 0
        self._looking: asyncio.TimerHandle | None = None
        self._heard_s = 0.0
        # Versions that it was told of, whatever came of it.
        self._told: set[PoolKey] = set()
        self._seeking: asyncio.Task[None] | None = None
        self.why_not: Exception | None = None
        """Why it is not ready, as far as that was tried."""
        self._again_s = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it is there, and serves what it shall."""
        return self.is_open and not self.is_seeking and self._told >= self._pools.keys()

    @property
    def is_seeking(self) -> bool:
        """Whether it is being connected, or told what to serve."""
        return self._seeking is not None and not self._seeking.done()

    def seek(self) -> asyncio.Task[None] | None:
        """Make it ready; the task that does, none if that failed a moment ago."""
        if not self.is_seeking and asyncio.get_running_loop().time() >= self._again_s:
            self._seeking = asyncio.create_task(self._seek(), name=f"seek {self.address}")
        return self._seeking if self.is_seeking else None

    async def _seek(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                if not self.is_open:
                    self._told.clear()
                    await self._connect()
                await self._tell_pools()
            self.why_not = None
        except (OSError, ConfigError, EnvFault) as error:  # TimeoutError is an OSError
            self.close()
            self._again_s = asyncio.get_running_loop().time() + RETRY_S
            self.why_not = error

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

    async def _tell_pools(self) -> None:
        """Have it serve what it was not told of yet, and nothing that is retired."""
        while missing := self._pools.keys() - self._told:
            key = missing.pop()
            question = msgspec.structs.replace(self._pools[key], id=next(self._ids))
            try:
                await self.ask(question, PluggedIn, CONNECT_S)
            except ConfigError as error:  # the other pools can be served
                _log.warning("host %s does not serve pool %s: %s", self.address, key.name, error)
            self._told.add(key)
        for key in self._told - self._pools.keys():
            self.retire(key)

    def told(self, key: PoolKey) -> None:
        """It was told of a version, and serves it."""
        self._told.add(key)

    def retire(self, key: PoolKey) -> None:
        """Have it open no more sessions of a version, if it knows it."""
        if self.is_open and key in self._told:
            self._told.discard(key)
            self.tell(Retire(id=next(self._ids), key=key))

    def next_id(self) -> int:
        return next(self._ids)

    async def ask(self, question: Question, kind: type[A], timeout_s: float | None) -> A:
        """The answer. Raises HostGone, ConfigError, EnvFault.

        A host that does not answer within `timeout_s`, or without one shows no sign of life, is given up.
        """
        link = self._link
        if link is None or not link.is_open:
            raise HostGone(f"host {self.address} is gone")
        loop = asyncio.get_running_loop()
        future = self._asked[question.id] = loop.create_future()
        timer = loop.call_later(timeout_s, self._give_up) if timeout_s is not None else None
        self._num_patient += timer is None
        self._look_for_signs()
        try:
            link.send(question)
            answer = await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                self._answer_for_nobody(future.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._num_patient -= timer is None
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
            self._link.abort()  # the host may not even read what is on its way

    async def leave(self) -> None:
        """Close it for good."""
        if self._seeking is not None:
            self._seeking.cancel()
            await asyncio.gather(self._seeking, return_exceptions=True)
        self.close()

    def _give_up(self) -> None:
        """A host that does not answer in time is as good as dead."""
        _log.warning("host %s does not answer: its sessions go elsewhere", self.address)
        self.close()

    def _look_for_signs(self) -> None:
        if self._looking is None and self._num_patient:
            loop = asyncio.get_running_loop()
            self._heard_s = loop.time()
            self._looking = loop.call_later(GRACE_S, self._look)

    def _look(self) -> None:
        """Have a host that owes an answer without a deadline say something now and then."""
        self._looking = None
        if not self._num_patient or not self.is_open:
            return
        loop = asyncio.get_running_loop()
        silent_s = loop.time() - self._heard_s
        if silent_s > 1.5 * GRACE_S:
            self._give_up()
            return
        if silent_s > 0.5 * GRACE_S:
            self.tell(Hello(id=next(self._ids), token=self._token))
        self._looking = loop.call_later(GRACE_S, self._look)

    def _heard(self, _: Link, answer: Answer) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        future = self._asked.get(answer.id)
        if future is None or future.done():
            self._answer_for_nobody(answer)
        else:
            future.set_result(answer)

    def _answer_for_nobody(self, answer: Answer) -> None:
        """Whoever asked was cancelled: a session that was opened for it is closed."""
        if isinstance(answer, Opened):
            self.tell(Leave(id=next(self._ids), session=answer.session))

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
