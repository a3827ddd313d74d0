"""Fixtures every test gets: no blocking call on an event loop, no lost task or exception."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
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


@pytest.fixture
async def watched_own_loop() -> AsyncIterator[None]:
    async with no_lost_tasks():
        yield


@pytest_asyncio.fixture(loop_scope="session")
async def watched_shared_loop() -> AsyncIterator[None]:
    async with no_lost_tasks():
        yield


@pytest.fixture(autouse=True)
def no_lost_task(request: pytest.FixtureRequest) -> None:
    """Fail a test that leaves a task running or drops a task's exception, on the loop that it uses."""
    mark = request.node.get_closest_marker("asyncio")
    is_shared = mark is not None and mark.kwargs.get("loop_scope") == "session"
    request.getfixturevalue("watched_shared_loop" if is_shared else "watched_own_loop")
