"""`Life`: an environment as long as one process lasts, and `EnvFault`, how it fails.

Nothing an environment does reaches the caller but a `StepResult` or an `EnvFault`. Whoever opens one
closes it; a call that is cancelled or passes its deadline kills the process first.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from envpool.frames import (
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

# A session's receive buffer; longer replies come in pieces.
READ_BYTES = 8 * 2**10
# What a session may say of a fault; the rest is ours to see. And how much: the end says the most.
FAULTS = frozenset({Outcome.ENV_ERROR, Outcome.GRADER_ERROR, Outcome.OOM})
MAX_ERROR_CHARS = 8000
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


class Wire(asyncio.BufferedProtocol):
    """The socket to a session process: one request at a time, and its reply."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._splitter = Splitter()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._reply: asyncio.Future[Reply] | None = None
        self._fault: FrameError | None = None

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        """Send a request, wait for its reply.

        Raises TimeoutError, ConnectionError, FrameError, MsgspecError.
        """
        if self._transport is None:
            raise ConnectionResetError("the session process closed its socket")
        if self._fault is not None:
            raise self._fault
        frame = pack(request)
        reply = self._reply = self._loop.create_future()
        # A timer on the future, as asyncio.timeout costs a tenth of a step.
        timer = self._loop.call_later(timeout_s, self._fail, TimeoutError())
        try:
            self._transport.write(frame)
            return await reply
        finally:
            timer.cancel()
            self._reply = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as the transports of uvloop are no subclass.
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            for body in self._splitter.feed(self._buffer[:nbytes]):
                if self._reply is None or self._reply.done():
                    self._stray()
                    return
                self._reply.set_result(decode_reply(body))
        except (FrameError, msgspec.MsgspecError) as error:
            self._fail(error)
        # Text that is none, and what is nested too deeply.
        except (UnicodeDecodeError, RecursionError) as error:
            self._fail(FrameError(f"a reply cannot be read: {error}"))

    def _stray(self) -> None:
        """A frame that nobody asked for: the next call fails, and no more is read of what may follow."""
        self._fault = FrameError("it sent a frame that nobody asked for")
        if self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError("the session process closed its socket"))

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


class Worker:
    """A session process and the wire to it."""

    def __init__(self, child: Child, wire: Wire) -> None:
        self.child = child
        self.num_sessions = 0
        """Sessions begun on it."""
        self._wire = wire
        self._num_requests = 0
        self._is_sound = True

    @property
    def is_gone(self) -> bool:
        return self.child.gone.is_set() or not self._wire.is_open

    @property
    def is_reusable(self) -> bool:
        """Whether it lives and has answered everything it was asked, without a fault."""
        return self._is_sound and not self.is_gone

    def next_id(self) -> int:
        """The id of a new request; a request with an old id is answered from the record."""
        self._num_requests += 1
        return self._num_requests

    async def ask(self, request: Request, timeout_s: float) -> Reply:
        """The reply, within the deadline. Raises EnvFault; the process may then be dead."""
        what = type(request).__name__.lower()
        self._is_sound = False
        try:
            reply = await self._wire.ask(request, timeout_s)
        except TimeoutError as error:
            await self.kill()
            raise EnvFault(Outcome.TIMEOUT, f"{what} took over {timeout_s} s: killed") from error
        except ConnectionError as error:
            await self.kill()
            child = self.child
            raise EnvFault(child.outcome, f"{what}: process {child.pid} {child.ended}") from error
        except (FrameError, msgspec.MsgspecError) as error:
            await self.kill()
            raise EnvFault(Outcome.ENV_ERROR, f"{what}: {error}") from error
        except asyncio.CancelledError:
            self.let_go()
            raise
        if reply.id != request.id:
            await self.kill()
            raise EnvFault(Outcome.ENV_ERROR, f"{what} {request.id} was answered by {reply.id}")
        if isinstance(reply, Failed):
            outcome = reply.outcome if reply.outcome in FAULTS else Outcome.ENV_ERROR
            raise EnvFault(outcome, reply.error[-MAX_ERROR_CHARS:])
        self._is_sound = True
        return reply

    def let_go(self) -> None:
        """Kill the process without waiting for its end."""
        self._wire.close()
        self.child.kill()

    async def kill(self) -> None:
        self.let_go()
        await self.child.wait()

    async def close(self) -> None:
        """Let the process end by itself, or kill it after a grace."""
        self._wire.close()
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
        worker: Worker,
        prompt: str,
        tools: list[dict[str, Any]],
        *,
        step_timeout_s: float,
        give_back: "Callable[[Life, Worker], Awaitable[None]]",
    ) -> None:
        self.prompt = prompt
        """The task in words."""
        self.tools = tools
        """OpenAI function schemas."""
        self._worker = worker
        self._step_timeout_s = step_timeout_s
        self._give_back = give_back
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self.used_s = self._loop.time()
        """When it was asked last, on the clock of the event loop."""

    @property
    def pid(self) -> int:
        return self._worker.child.pid

    @property
    def is_over(self) -> bool:
        """Whether its process is known to be gone, or its socket closed."""
        return self._worker.is_gone

    @property
    def death(self) -> Death | None:
        """Why its process ended; None while it lives."""
        return self._worker.child.death

    async def step(self, action: str) -> StepResult:
        """Carry out one action. Raises EnvFault, after which it is of no more use."""
        if self._is_closed:
            raise EnvFault(Outcome.CANCELLED, "the session is closed")
        self.used_s = self._loop.time()
        request = Step(id=self._worker.next_id(), action=action)
        reply = await self._worker.ask(request, self._step_timeout_s)
        if not isinstance(reply, Stepped):
            await self._worker.kill()
            raise EnvFault(Outcome.ENV_ERROR, f"step was answered by {type(reply).__name__}")
        if not math.isfinite(reply.reward):  # its own process never sends one
            await self._worker.kill()
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
        if not self._is_closed:
            self._is_closed = True
            await self._give_back(self, self._worker)

    def end(self) -> None:
        """Have its process killed: `is_over` from now on."""
        self._worker.let_go()
