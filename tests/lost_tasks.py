"""What every test is watched for: a task left running, an exception that nobody awaited."""

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def no_lost_tasks() -> AsyncIterator[None]:
    """Fail when the block leaves a task running or drops a task's exception.

    A task may replace one of the same function that ran before and ended, as those of an engine do that
    several tests share.
    """
    lost: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.set_exception_handler(lambda _, context: lost.append(context))
    before = asyncio.all_tasks()
    # What there was before need not be looked through: of large libraries alone that takes 0.3 s.
    gc.freeze()
    try:
        yield
        ended = Counter(_function(task) for task in before if task.done())
        new = asyncio.all_tasks() - before - {asyncio.current_task()}
        count = Counter(map(_function, new))
        leaked = {task for task in new if count[_function(task)] > ended[_function(task)]}
        gc.collect()
    finally:
        gc.unfreeze()
    assert not leaked, f"tasks still running: {leaked}"
    assert not lost, f"exceptions nobody awaited: {lost}"


def _function(task: "asyncio.Task[Any]") -> str:
    return getattr(task.get_coro(), "__qualname__", "")
