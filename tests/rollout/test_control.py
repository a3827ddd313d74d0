"""The control plane over real HTTP."""

import asyncio
from pathlib import Path

import aiohttp
import msgspec
import pytest

from rollout.control import ControlFile, PoolStatus, Status, serve


def make_status() -> Status:
    return Status(
        run_dir="runs/a",
        phase="training",
        step=3,
        steps=10,
        version=3,
        engines={"actor-0": 2},
        pools=[PoolStatus(name="basics", version="abc", slots_held=3)],
        slots=24,
        slots_held=20,
        groups={"running": 4},
        reward=0.5,
        uptime_s=1.0,
    )


async def test_status_is_served_where_control_json_says(tmp_path: Path) -> None:
    async with serve(tmp_path, port=0, status=make_status):
        data = await asyncio.to_thread((tmp_path / "control.json").read_bytes)
        control = msgspec.json.decode(data, type=ControlFile)
        assert control.url.startswith("http://127.0.0.1:")
        async with aiohttp.ClientSession() as client, client.get(f"{control.url}/status") as got:
            assert got.status == 200
            assert msgspec.json.decode(await got.read(), type=Status) == make_status()
    assert not await asyncio.to_thread((tmp_path / "control.json").exists)


async def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    async with serve(tmp_path, port=0, status=make_status) as url:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=str(port)):
            async with serve(tmp_path, port=port, status=make_status):
                pass
