"""Stages end together: normal end, crash, early return, outside cancel."""

import asyncio

import pytest

from rollout.supervise import root_cause, supervise


async def forever(log: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        log.append("stopped")


async def nothing() -> None:
    await asyncio.sleep(0)


async def crash() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken stage")


async def test_the_end_of_the_clock_ends_every_stage() -> None:
    log: list[str] = []
    await supervise({"a": forever(log), "b": forever(log)}, nothing())
    assert log == ["stopped", "stopped"]


async def test_a_crashed_stage_ends_the_clock_and_is_raised() -> None:
    log: list[str] = []
    with pytest.raises(ExceptionGroup) as raised:
        await supervise({"a": crash()}, forever(log))
    assert str(root_cause(raised.value)) == "broken stage"
    assert log == ["stopped"]


async def test_a_stage_that_returns_is_an_error() -> None:
    log: list[str] = []
    with pytest.raises(ExceptionGroup) as raised:
        await supervise({"feed": nothing()}, forever(log))
    assert "'feed' returned" in str(root_cause(raised.value))


async def test_a_crashed_clock_ends_every_stage() -> None:
    log: list[str] = []
    with pytest.raises(ExceptionGroup) as raised:
        await supervise({"a": forever(log)}, crash())
    assert isinstance(root_cause(raised.value), ValueError)
    assert log == ["stopped"]


async def test_outside_cancellation_ends_everything_and_is_not_swallowed() -> None:
    log: list[str] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(supervise({"a": forever(log)}, forever(log)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert log == ["stopped", "stopped"]
