"""Starts that take too long or that nobody wants leave no process behind; no vLLM is needed for that."""

import asyncio
import multiprocessing
import os
import signal
import threading
from typing import Any

import pytest

from rollout.engine import EngineError
from rollout.vllm_start import start_core


class Core:
    """What a start is for; remembers how it was ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.is_closed = asyncio.Event()

    def kill(self) -> None:
        self.ends.append("kill")

    async def close(self) -> None:
        self.ends.append("close")
        self.is_closed.set()


class HungStart:
    """Starts a process and waits for it, as vLLM does, for ever."""

    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.pid = 0
        self.is_over = threading.Event()

    def __call__(self) -> Any:
        child = multiprocessing.get_context("spawn").Process(target=signal.pause)
        child.start()
        self.pid = child.pid or 0
        self.loop.call_soon_threadsafe(self.has_begun.set)
        child.join()
        self.is_over.set()
        raise RuntimeError("its process is gone")

    async def assert_ended(self) -> None:
        """Wait for it to end; fails when its process is there then."""
        assert await asyncio.to_thread(self.is_over.wait, 60)
        with pytest.raises(ProcessLookupError):
            os.kill(self.pid, 0)


async def test_it_runs_with_the_priority_of_who_asks() -> None:
    await asyncio.to_thread(int)  # a thread that is there already has another one
    before = os.sched_getscheduler(0)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        make: Any = lambda: os.sched_getscheduler(0)  # noqa: E731
        found = await start_core(make, within_s=60, is_unwanted=asyncio.Event())
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))
    assert found == os.SCHED_BATCH


async def test_one_that_hangs_is_ended_with_its_processes() -> None:
    start = HungStart()
    with pytest.raises(EngineError, match=r"within engine\.vllm\.start_timeout_s=0\.5: raise that"):
        await start_core(start, within_s=0.5, is_unwanted=asyncio.Event())
    await start.assert_ended()


async def test_one_that_nobody_wants_any_more_ends_at_once() -> None:
    start, is_unwanted = HungStart(), asyncio.Event()
    async with asyncio.timeout(60):
        task = asyncio.create_task(start_core(start, within_s=3600, is_unwanted=is_unwanted))
        await start.has_begun.wait()
        is_unwanted.set()
        with pytest.raises(EngineError, match="not wanted"):
            await task
    await start.assert_ended()


async def test_one_that_is_cancelled_ends_too() -> None:
    start = HungStart()
    task = asyncio.create_task(start_core(start, within_s=3600, is_unwanted=asyncio.Event()))
    await start.has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await start.assert_ended()


async def test_one_that_is_given_up_takes_no_other_with_it() -> None:
    """What ends the processes of the first goes on while the second starts one."""
    is_over = threading.Event()

    def linger() -> Any:
        is_over.wait()
        raise RuntimeError("its process is gone")

    def make() -> Any:
        child = multiprocessing.get_context("spawn").Process(target=signal.pause)
        child.start()
        child.join(1)
        child.terminate()
        child.join()
        return child.exitcode

    first = asyncio.create_task(start_core(linger, within_s=3600, is_unwanted=asyncio.Event()))
    await asyncio.sleep(0.1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(start_core(make, within_s=60, is_unwanted=asyncio.Event()))
    await asyncio.sleep(0.5)
    is_over.set()
    assert await second == -signal.SIGTERM


async def test_one_that_is_given_up_before_its_turn_is_not_made() -> None:
    is_over, made = threading.Event(), []
    first: Any = asyncio.create_task(
        start_core(lambda: is_over.wait(60), within_s=60, is_unwanted=asyncio.Event())  # pyright: ignore[reportArgumentType]
    )
    await asyncio.sleep(0.1)
    make: Any = lambda: made.append(1)  # noqa: E731
    asyncio.get_running_loop().call_later(1, is_over.set)
    with pytest.raises(EngineError, match=r"within engine\.vllm\.start_timeout_s=0\.1"):
        await start_core(make, within_s=0.1, is_unwanted=asyncio.Event())
    assert await first and not made


async def test_what_comes_too_late_is_ended() -> None:
    core, may_come = Core(), threading.Event()

    def make() -> Any:
        may_come.wait()
        return core

    task = asyncio.create_task(start_core(make, within_s=3600, is_unwanted=asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_come.set()
    async with asyncio.timeout(60):
        await core.is_closed.wait()
    assert core.ends == ["kill", "close"]


async def test_what_comes_just_as_its_wait_is_cancelled_is_ended() -> None:
    core, loop = Core(), asyncio.get_running_loop()

    def cancel(thread: threading.Thread) -> None:
        # What it returns is on its way then, before anybody else has a turn.
        while thread.is_alive():
            continue
        task.cancel()

    def make() -> Any:
        loop.call_soon_threadsafe(cancel, threading.current_thread())
        return core

    task = asyncio.create_task(start_core(make, within_s=3600, is_unwanted=asyncio.Event()))
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        await core.is_closed.wait()
    assert core.ends == ["kill", "close"]


async def test_what_it_raises_is_raised() -> None:
    def make() -> Any:
        raise EngineError("no such model")

    with pytest.raises(EngineError, match="no such model"):
        await start_core(make, within_s=60, is_unwanted=asyncio.Event())
