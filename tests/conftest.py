"""Fixtures every test gets: no blocking call on an event loop, no lost task or exception."""

from collections.abc import AsyncIterator, Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import settings

from tests.lost_tasks import no_lost_tasks

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
    async with no_lost_tasks():
        yield
