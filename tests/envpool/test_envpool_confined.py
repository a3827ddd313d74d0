"""Untrusted pools where less is allowed: what is missing is not claimed, and imports still leave nothing."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from envpool import sandbox
from envpool.sandbox import Layer
from tests.envpool.confined import CANNOT, WHERE

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))


@pytest.fixture
def folder() -> Iterator[str]:
    """One that every user may read."""
    with TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield path


@pytest.mark.parametrize("where", WHERE)
async def test_an_untrusted_pool_is_served(folder: str, where: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.envpool.confined",
        where,
        folder,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    if process.returncode == CANNOT:
        pytest.skip("another user could not read this Python")
    assert process.returncode == 0
    layers = set(said.decode().strip().split(","))
    assert set(sandbox.REQUIRED) <= layers
    if where != "ordinary_user":
        assert not {Layer.PROCESSES, Layer.NAMESPACES} & layers
    if where == "no_cgroups":
        assert Layer.CGROUP not in layers
