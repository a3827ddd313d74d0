"""Starting vLLM, which blocks for seconds or for ever: in a thread of its own, for a bounded time."""

import asyncio
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Collection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from rollout.engine import EngineError

if TYPE_CHECKING:
    from rollout.vllm_api import Core

logger = logging.getLogger(__name__)

# How long a start that was given up may take to notice that its processes are gone.
_GRACE_S = 10.0

# One start at a time: which children of a process are whose can only be told by what is being started.
_turn = threading.Lock()


async def start_core(
    make: "Callable[[], Core]", *, within_s: float, is_unwanted: asyncio.Event
) -> "Core":
    """What `make` returns. A start that is late, unwanted or cancelled ends with its processes.

    Raises EngineError.
    """
    if is_unwanted.is_set():
        raise EngineError("it is not wanted any more")
    start = _Start(make)
    unwanted = asyncio.create_task(is_unwanted.wait())
    try:
        await asyncio.wait(
            {start.core, unwanted}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED
        )
        if start.core.done():
            return start.take()
        start.core.cancel()
        await asyncio.to_thread(start.kill)
        if is_unwanted.is_set():
            raise EngineError("it is not wanted any more")
        raise EngineError(
            f"vLLM did not start within engine.vllm.start_timeout_s={within_s:g}: raise that where a "
            "model takes longer to load or to compile"
        )
    finally:
        unwanted.cancel()
        start.give_up()


class _Start:
    """A core on its way."""

    def __init__(self, make: "Callable[[], Core]") -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self.core: asyncio.Future[Core] = self._loop.create_future()
        self._is_taken = False
        self._others: Collection[BaseProcess] | None = None
        """Children of this process that are not of this start; None before its turn."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="vllm-start")
        # Not one of a pool: the engine's processes have the priority and the CPUs of the thread that starts
        # them, which are those of this one only if it is made now.
        self._thread.start()

    def take(self) -> "Core":
        """What came; its end is the caller's business then."""
        self._is_taken = True
        return self.core.result()

    def give_up(self) -> None:
        """Want nothing of it any more, whatever comes of it; blocks for nothing."""
        if self.core.done():
            # It may have come just when whoever waited for it was cancelled.
            if not self._is_taken and not self.core.cancelled() and not self.core.exception():
                self._end(self.core.result())
            return
        self.core.cancel()
        threading.Thread(target=self.kill, daemon=True, name="vllm-start-end").start()

    def _run(self) -> None:
        core, error = None, None
        try:
            with _turn:
                if self.core.cancelled():
                    return
                self._others = set(multiprocessing.active_children())
                core = self._make()
        except BaseException as raised:  # noqa: BLE001 whoever waits gets it
            error = raised
        try:
            self._loop.call_soon_threadsafe(self._tell, core, error)
        except RuntimeError:  # the loop is closed
            if core is not None:
                core.kill()

    def _tell(self, core: "Core | None", error: BaseException | None) -> None:
        if self.core.done():
            if core is not None:
                self._end(core)
            return
        if core is not None:
            self.core.set_result(core)
        elif error is not None:
            self.core.set_exception(error)

    def _end(self, core: "Core") -> None:
        core.kill()
        self._closing = self._loop.create_task(core.close())

    def kill(self) -> None:
        """End its processes, and wait a moment for it to notice; blocks."""
        # Again and again: it may be about to start one.
        end = time.monotonic() + _GRACE_S
        while time.monotonic() < end:
            children, others = multiprocessing.active_children(), self._others
            if not self._thread.is_alive():
                return  # they may be another start's
            for child in children:
                if others is not None and child not in others:
                    logger.warning("process %d is killed, in the middle of its start", child.pid)
                    child.kill()
            self._thread.join(0.2)
