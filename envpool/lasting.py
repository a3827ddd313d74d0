"""`Session`: one episode that survives the death of its process.

    step -- ask --> Life (a process)          dies: another process starts the same task,
         <- result --                         replays the recorded actions, compares what they answer

An environment is deterministic given its task and its actions. So a session whose process was killed goes
on in another one as if nothing had happened, and the episode's transcript is the one it would have had.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, Self

import msgspec

from envpool.frames import Outcome
from envpool.nursery import Death
from envpool.session import EnvFault, StepResult
from envpool.task import Task

# How a step fails that takes its process with it.
DEADLY = frozenset({Outcome.CRASHED, Outcome.TIMEOUT, Outcome.OOM})
# Processes that may die under a session in all.
MAX_DEATHS = 20
# Times an action whose process was killed is tried again: it may be what fills the memory.
MAX_KILLS = 2

_log = logging.getLogger(__name__)
_encode = msgspec.msgpack.Encoder().encode


class AnyLife(Protocol):
    """An episode in one process, of this pool's or of a host's."""

    @property
    def prompt(self) -> str: ...
    @property
    def tools(self) -> list[dict[str, Any]]: ...
    @property
    def pid(self) -> int: ...
    @property
    def is_over(self) -> bool: ...
    @property
    def death(self) -> Death | None: ...
    async def step(self, action: str) -> StepResult: ...
    async def close(self) -> None: ...


class Opens(ABC):
    """Where sessions are opened: an env pool here, or hosts. Close it; `async with` does."""

    @abstractmethod
    async def open(self, task: Task) -> "Session":
        """Start an episode of `task`, when there is room. Raises EnvFault."""

    @abstractmethod
    async def close(self) -> None:
        """End all sessions. Safe to call again."""

    @asynccontextmanager
    async def session(self, task: Task) -> AsyncIterator["Session"]:
        """An episode of `task` that is closed at the end of the block. Raises EnvFault."""
        async with await self.open(task) as session:
            yield session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Session:
    """One episode of one environment. Close it, also after a fault; `async with` does."""

    def __init__(
        self,
        name: str,
        life: AnyLife,
        open_life: Callable[[bool], Awaitable[AnyLife]] | None,
        *,
        when_closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` is for the log; without `open_life` the first death is the last.

        `open_life` is told whether the session may have ended a process that it shared.
        """
        self._name = name
        self._life = life
        self._open_life = open_life
        self._when_closed = when_closed
        self._start = _digest(life.prompt, life.tools)
        # Each action that was answered, and a hash of the answer.
        self._record: list[tuple[str, int]] = []
        self._num_deaths = 0
        self._was_deadly = False
        self._is_suspect = False
        self._is_closed = False
        self.actions: list[str] = []
        """What was asked so far, the last one also when it failed."""

    @property
    def prompt(self) -> str:
        """The task in words."""
        return self._life.prompt

    @property
    def tools(self) -> list[dict[str, Any]]:
        """OpenAI function schemas."""
        return self._life.tools

    @property
    def pid(self) -> int:
        return self._life.pid

    async def step(self, action: str) -> StepResult:
        """Carry out one action. Raises EnvFault, after which the session is of no more use.

        The first action that itself kills or hangs the process, or fills its memory, is a wrong call,
        and left out of what follows; the second is a fault.
        """
        # A lone surrogate cannot travel, and is wrong in every environment anyway.
        sent = action if action.isascii() else action.encode(errors="replace").decode()
        self.actions.append(sent)
        if self._life.is_over and self._open_life is not None and not self._is_closed:
            await self._rebuild()
        try:
            result = await self._life.step(sent)
        except EnvFault as fault:
            if fault.outcome not in DEADLY or self._open_life is None:
                raise
            return await self._survive(sent, fault)
        if self._open_life is not None:
            self._record.append((sent, hash(result)))
        return result

    async def close(self) -> None:
        """End the session, and its process unless another may use it. Safe to call again."""
        if not self._is_closed:
            self._is_closed = True
            self._when_closed()
        await self._life.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _survive(self, action: str, fault: EnvFault) -> StepResult:
        """The process died under an action: perhaps by it, perhaps not."""
        attempts = 0
        self._is_suspect = True
        while fault.outcome is Outcome.CRASHED and self._life.death is not Death.OWN:
            attempts += self._life.death is Death.KILLED
            if attempts > MAX_KILLS:
                break
            await self._rebuild()
            try:
                result = await self._life.step(action)
            except EnvFault as again:
                if again.outcome not in DEADLY:
                    raise
                fault = again
            else:
                self._record.append((action, hash(result)))
                return result
        if self._was_deadly:
            raise fault
        self._was_deadly = True
        await self._rebuild()
        _log.info("%s: a step ended its process and is left out: %s", self._name, fault)
        words = {Outcome.TIMEOUT: "took too long", Outcome.OOM: "took too much memory"}
        observation = f"Error: the call {words.get(fault.outcome, 'ended the environment')}"
        return StepResult(
            observation=observation,
            reward=0.0,
            terminated=False,
            truncated=False,
            is_bad_call=True,
            outcome=fault.outcome,
        )

    async def _rebuild(self) -> None:
        """Another process in the same state. Raises EnvFault when it cannot be had."""
        assert self._open_life is not None
        while True:
            self._num_deaths += 1
            if self._num_deaths > MAX_DEATHS:
                raise EnvFault(Outcome.CRASHED, f"{self._num_deaths} processes of it died")
            await self._life.close()
            try:
                self._life = await self._open_life(self._is_suspect)
                await self._replay()
            except EnvFault as fault:
                if fault.outcome is not Outcome.CRASHED:
                    raise
                continue  # killed meanwhile
            return

    async def _replay(self) -> None:
        if _digest(self._life.prompt, self._life.tools) != self._start:
            raise self._differs("its start")
        for number, (action, known) in enumerate(self._record, start=1):
            if hash(await self._life.step(action)) != known:
                raise self._differs(f"step {number}")

    def _differs(self, what: str) -> EnvFault:
        message = (
            f"{what} was answered differently when it was played again: the environment is not "
            "deterministic given its configuration, seed and actions"
        )
        _log.warning("%s: %s", self._name, message)
        return EnvFault(Outcome.ENV_ERROR, message)


def _digest(*values: Any) -> bytes:
    return hashlib.blake2b(_encode(values), digest_size=16).digest()
