"""The control plane: HTTP on `control.host`, found through `run_dir/control.json`."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web

from configs.schema import ControlSection
from rollout.desk import Desk
from rollout.guard import Guard
from rollout.routes import application
from rollout.types import FORMAT

logger = logging.getLogger(__name__)

FILE = "control.json"

# Requests still answered once the run is over.
SHUTDOWN_S = 2.0

# Addresses that mean all of a machine's, and how it reaches itself there.
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ControlFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run_dir/control.json`: where a running run can be reached. For its owner's eyes only."""

    format: int = FORMAT
    url: str
    pid: int
    token: str = ""
    """What requests must carry; empty where they need not."""


@asynccontextmanager
async def serve(run_dir: Path, *, section: ControlSection, desk: Desk) -> AsyncIterator[str]:
    """Serve while inside; yields the URL. Raises OSError when the port is taken."""
    guard = Guard(section)
    app = application(desk, guard)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, section.host, section.port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        host = _EVERYWHERE.get(str(host), str(host))
        url = f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        path = run_dir / FILE
        record = ControlFile(url=url, pid=os.getpid(), token=guard.token)
        await asyncio.to_thread(_write, path, msgspec.json.encode(record))
        if guard.token:
            logger.info("control: requests to %s need the token in %s", section.host, path)
        try:
            yield url
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    finally:
        await runner.cleanup()


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and never readable by others."""
    partial = path.with_suffix(".tmp")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)
