"""Fixtures every test gets: no blocking call on an event loop, no lost task or exception."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

# On a busy machine any example may take long: no test asserts a time.
settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Fail a test whose event loop makes a blocking call."""
    with blockbuster_ctx() as blockbuster:
        yield blockbuster


@pytest.fixture(autouse=True)
async def no_lost_task() -> AsyncIterator[None]:
    """Fail a test that leaves a task running or drops a task's exception."""
    lost: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks()
    yield
    leaked = asyncio.all_tasks() - before - {asyncio.current_task()}
    gc.collect()
    assert not leaked, f"tasks still running: {leaked}"
    assert not lost, f"exceptions nobody awaited: {lost}"
