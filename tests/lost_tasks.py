"""What every test is watched for: a task left running, an exception that nobody awaited."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def no_lost_tasks() -> AsyncIterator[None]:
    """Fail when the block leaves a task running or drops a task's exception."""
    lost: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks()
    # What there was before need not be looked through: of large libraries alone that takes 0.3 s.
    gc.freeze()
    try:
        yield
        leaked = asyncio.all_tasks() - before - {asyncio.current_task()}
        gc.collect()
    finally:
        gc.unfreeze()
    assert not leaked, f"tasks still running: {leaked}"
    assert not lost, f"exceptions nobody awaited: {lost}"
