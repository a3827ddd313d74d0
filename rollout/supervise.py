"""Endless stages beside one finite clock: whatever ends, crashes or is cancelled ends the run."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

Stage = Coroutine[Any, Any, None]


async def supervise(stages: Mapping[str, Stage], clock: Stage) -> None:
    """Run endless `stages` beside the finite `clock`; the clock's return ends the run.

    Raises:
        ExceptionGroup: with what the stages and the clock raised.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_endless(name, stage), name=name) for name, stage in stages.items()
        ]
        await clock
        for task in tasks:
            task.cancel()


async def _endless(name: str, stage: Stage) -> None:
    await stage
    raise RuntimeError(f"stage {name!r} returned before the run ended")


def root_cause(error: BaseException) -> BaseException:
    """The first leaf of nested exception groups; for an error of another process, that error."""
    while True:
        inner = getattr(error, "cause", None)  # how ray carries what a process raised
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(inner, BaseException):
            error = inner
        else:
            return error
