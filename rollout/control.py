"""The control plane: HTTP on the loopback address, found through `run_dir/control.json`."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from aiohttp import web

from rollout.evaluate import Progress
from rollout.types import FORMAT


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a pool, as `GET /status` shows it."""

    name: str
    version: str
    slots_held: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /status`."""

    format: int = FORMAT
    run_dir: str
    phase: str
    evaluation: Progress | None = None
    """How far the evaluation that is played now is."""
    step: int
    steps: int
    version: int
    engines: dict[str, int]
    """Version held by each engine."""
    pools: list[PoolStatus]
    slots: int
    slots_held: int
    groups: dict[str, int]
    """Groups by state."""
    reward: float | None
    """Mean of the rollouts that ended before the last step."""
    uptime_s: float


class ControlFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run_dir/control.json`: where a running run can be reached."""

    format: int = FORMAT
    url: str
    pid: int


@asynccontextmanager
async def serve(run_dir: Path, *, port: int, status: Callable[[], Status]) -> AsyncIterator[str]:
    """Serve while inside; yields the URL. Raises OSError when the port is taken."""

    async def get_status(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(status()), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/status", get_status)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, bound = runner.addresses[0][:2]
        url = f"http://{host}:{bound}"
        path = run_dir / "control.json"
        record = msgspec.json.encode(ControlFile(url=url, pid=os.getpid()))
        await asyncio.to_thread(path.write_bytes, record)
        try:
            yield url
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    finally:
        await runner.cleanup()
