"""Deadlines that come early when what is waited for will never come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Deadline:
    """Of one thing at a time; raises TimeoutError where it passes."""

    def __init__(self) -> None:
        self._limit: asyncio.Timeout | None = None

    @asynccontextmanager
    async def within(self, seconds: float | None) -> AsyncIterator[None]:
        """For the block: so long, or as long as it takes, and no longer than until `cut`."""
        async with asyncio.timeout(seconds) as limit:
            self._limit = limit
            try:
                yield
            finally:
                self._limit = None

    def cut(self) -> None:
        """It is over now, if it runs."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())
