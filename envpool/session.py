"""`Life`: an environment as long as one process lasts, and `EnvFault`, how it fails.

Nothing an environment does reaches the caller but a `StepResult` or an `EnvFault`. Whoever opens one
closes it; a call that is cancelled or passes its deadline kills the process first.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

import msgspec

from envpool.frames import (
    End,
    Failed,
    FrameError,
    Outcome,
    Reply,
    Request,
    Splitter,
    Step,
    Stepped,
    decode_reply,
    pack,
)
from envpool.nursery import Child, Death

# What a session may say of a fault; the rest is ours to see. And how much: the end says the most.
FAULTS = frozenset({Outcome.ENV_ERROR, Outcome.GRADER_ERROR, Outcome.OOM})
MAX_ERROR_CHARS = 8000
# A timer may ring this much before its time: event loops count in milliseconds.
TIMER_SLACK_S = 0.002
# How long a session may take to end by itself before it is killed.
CLOSE_GRACE_S = 1.0


class EnvFault(Exception):
    """The environment, not the policy, failed. Never a reward."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(outcome, message)
        self.outcome = outcome
        self.message = message

    def __str__(self) -> str:
        return f"{self.outcome}: {self.message}"


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment answered to one action."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    is_bad_call: bool
    outcome: Outcome = Outcome.OK
    """How the call went, where the environment's process did not outlive it."""


class Wire(asyncio.Protocol):
    """The socket to a session process: requests, and their replies in the same order."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter()
        self.transport: asyncio.Transport | None = None
        """None while there is no connection."""
        # Replies awaited, to what, and how long each may take once it is the first.
        self._awaited: deque[tuple[asyncio.Future[Reply], Request, float]] = deque()
        self._fault: FrameError | None = None
        self._deadline = 0.0
        # One timer for many requests: it is set anew when it rings too early, not at every step.
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self.when_late: Callable[[], None] | None = None
        """Called when a reply is late, whether or not anybody still waits for it."""

    def ask(self, request: Request, timeout_s: float) -> asyncio.Future[Reply]:
        """Send a request; the future is its reply.

        Raises ConnectionError, FrameError; so does the future, and TimeoutError, MsgspecError.
        """
        if self.transport is None:
            raise ConnectionResetError("the session process closed its socket")
        if self._fault is not None:
            raise self._fault
        frame = pack(request)
        reply = self._loop.create_future()
        self._awaited.append((reply, request, timeout_s))
        if len(self._awaited) == 1:
            self._expect(timeout_s)
        self.transport.write(frame)
        return reply

    def tell(self, request: End) -> None:
        """Send what is not answered."""
        if self.transport is not None:
            self.transport.write(pack(request))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as the transports of uvloop are no subclass.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                if not self._awaited:
                    self._stray()
                    return
                reply = decode_reply(body)
                asked, request, _ = self._awaited[0]
                if reply.id != request.id:
                    raise FrameError(f"{request.id} was answered by {reply.id}")
                self._awaited.popleft()
                if not asked.done():
                    asked.set_result(reply)
                if self._awaited:
                    self._expect(self._awaited[0][2])
        except (FrameError, msgspec.MsgspecError) as error:
            self._fail(error)
        # Text that is none, and what is nested too deeply.
        except (UnicodeDecodeError, RecursionError) as error:
            self._fail(FrameError(f"a reply cannot be read: {error}"))

    def _stray(self) -> None:
        """A frame that nobody asked for: the next call fails, and no more is read of what may follow."""
        self._fault = FrameError("it sent a frame that nobody asked for")
        if self.transport is not None:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._fail(ConnectionResetError("the session process closed its socket"))

    def _expect(self, timeout_s: float) -> None:
        """The first of the replies that are awaited may take this long."""
        self._deadline = self._loop.time() + timeout_s
        if self._timer is None or self._deadline < self._rings_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = self._deadline
        self._timer = self._loop.call_at(self._rings_at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if not self._awaited:
            return  # The next request sets it again.
        if self._loop.time() < self._deadline - TIMER_SLACK_S:
            self._set_timer()
        else:
            self._fail(TimeoutError())
            if self.when_late is not None:
                self.when_late()

    def _fail(self, error: Exception) -> None:
        while self._awaited:
            asked, *_ = self._awaited.popleft()
            if not asked.done():
                asked.set_exception(error)


class Place(Protocol):
    """What an episode runs on: a process, or a share of one."""

    child: Child
    session: int
    """Its number among the sessions of the process."""
    num_sessions: int
    """Sessions begun on it."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def death(self) -> Death | None:
        """Why its process ended, as far as it may be blamed for it; None while it lives."""
        ...

    def next_id(self) -> int:
        """The id of a new request; a request with an old id is answered from the record."""
        ...

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        """The reply, within the deadline. Raises EnvFault; the process may then be dead."""
        ...

    async def close(self) -> None: ...


class Worker:
    """A session process and the wire to it: the `Place` of one session at a time."""

    session = 0

    def __init__(self, child: Child, wire: Wire) -> None:
        self.child = child
        self.num_sessions = 0
        self.wire = wire
        self._num_requests = 0
        self._is_sound = True

    @property
    def is_gone(self) -> bool:
        return self.child.death is not None or self.wire.transport is None

    @property
    def death(self) -> Death | None:
        return self.child.death

    @property
    def is_reusable(self) -> bool:
        """Whether it lives and has answered everything it was asked, without a fault."""
        return self._is_sound and not self.is_gone

    def next_id(self) -> int:
        self._num_requests += 1
        return self._num_requests

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        self._is_sound = False
        try:
            reply = await self.wire.ask(request, timeout_s)
        except TimeoutError as error:
            await self.kill()
            raise EnvFault(
                Outcome.TIMEOUT, f"{name_of(request)} took over {timeout_s} s: killed"
            ) from error
        except ConnectionError as error:
            await self.kill()
            child = self.child
            raise EnvFault(
                child.outcome, f"{name_of(request)}: process {child.pid} {child.ended}"
            ) from error
        except (FrameError, msgspec.MsgspecError) as error:
            await self.kill()
            raise EnvFault(Outcome.ENV_ERROR, f"{name_of(request)}: {error}") from error
        except asyncio.CancelledError:
            self.let_go()
            raise
        if isinstance(reply, Failed):
            outcome = reply.outcome if reply.outcome in FAULTS else Outcome.ENV_ERROR
            raise EnvFault(outcome, reply.error[-MAX_ERROR_CHARS:])
        self._is_sound = True
        return reply

    def let_go(self) -> None:
        """Kill the process without waiting for its end."""
        self.wire.close()
        self.child.kill()

    async def kill(self) -> None:
        self.let_go()
        await self.child.wait()

    async def close(self) -> None:
        """Let the process end by itself, or kill it after a grace."""
        self.wire.close()
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self.child.gone.wait()
        except TimeoutError:
            await self.kill()
        except asyncio.CancelledError:
            self.child.kill()
            raise


class Life:
    """One episode of one environment in one process. Close it, also after a fault."""

    def __init__(
        self,
        place: Place,
        prompt: str,
        tools: list[dict[str, Any]],
        *,
        step_timeout_s: float,
        give_back: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.prompt = prompt
        """The task in words."""
        self.tools = tools
        """OpenAI function schemas."""
        self._place = place
        self._step_timeout_s = step_timeout_s
        self._give_back = give_back
        self.is_closed = False
        self.when_closed: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self.used_s = self._loop.time()
        """When it was asked last, on the clock of the event loop."""

    @property
    def pid(self) -> int:
        return self._place.child.pid

    @property
    def is_over(self) -> bool:
        """Whether its process is known to be gone, or its socket closed."""
        return self._place.is_gone

    @property
    def death(self) -> Death | None:
        """Why its process ended; None while it lives."""
        return self._place.death

    async def step(self, action: str) -> StepResult:
        """Carry out one action. Raises EnvFault, after which it is of no more use."""
        if self.is_closed:
            raise EnvFault(Outcome.CANCELLED, "the session is closed")
        self.used_s = self._loop.time()
        place = self._place
        request = Step(id=place.next_id(), session=place.session, action=action)
        reply = await place.ask(request, self._step_timeout_s)
        if not isinstance(reply, Stepped):
            self.end()
            raise EnvFault(Outcome.ENV_ERROR, f"step was answered by {type(reply).__name__}")
        if not math.isfinite(reply.reward):  # its own process never sends one
            self.end()
            raise EnvFault(Outcome.GRADER_ERROR, f"the reward is {reply.reward}: no finite number")
        return StepResult(
            observation=reply.observation,
            reward=reply.reward,
            terminated=reply.terminated,
            truncated=reply.truncated,
            is_bad_call=reply.is_bad_call,
        )

    async def close(self) -> None:
        """End it, and its process unless another may use it. Safe to call again."""
        if not self.is_closed:
            self.is_closed = True
            if self.when_closed is not None:
                self.when_closed()
            await self._give_back()

    @property
    def is_alone(self) -> bool:
        """Whether no other session has its process."""
        return isinstance(self._place, Worker)

    def end(self) -> None:
        """Have its process killed, if it is alone in it: `is_over` from now on."""
        if isinstance(self._place, Worker):
            self._place.let_go()


def name_of(request: Request) -> str:
    """What is asked, as messages call it."""
    return type(request).__name__.lower()
