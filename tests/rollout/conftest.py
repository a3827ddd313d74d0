"""An engine of each kind, which the tests of what every kind must do share."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.engines import KINDS, Served, checkpoint, serving


# One for as many tests as can share it: some kinds take 20 s to start.
@pytest_asyncio.fixture(scope="session", loop_scope="session", params=KINDS)
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """On one of three models; the others are to be published."""
    folder = tmp_path_factory.mktemp("served")
    paths = [checkpoint(folder / f"model_{seed}", seed=seed) for seed in range(3)]
    async with serving(request.param, folder, paths, max_cached=8) as one:
        yield one
