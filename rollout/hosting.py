"""The env host of one node: what runs in its process, and which hosts an actor turns to.

    node A: actor-0, actor-1 --- unix socket ---> host A
    node B: actor-2 --- unix socket ---> host B            (tcp to A's, when B's is gone)

Nothing here knows of Ray, which starts these processes (`rollout/ray_hosts.py`).
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from configs.load import make_importable
from configs.schema import RunConfig
from envpool.host import Host
from envpool.pool import EnvPool
from rollout.logs import log_to_file
from rollout.processes import Process, describe

logger = logging.getLogger(__name__)


class HostPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a host is, or shall be."""

    name: str
    node: str
    """Ray's id of the node."""
    path: str
    """Of its unix socket, for the actors of its node."""
    port: str = ""
    """`address:port` for those of other nodes; empty where there are none."""


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the hosts of a run are; none where actors have env pools of their own."""

    places: list[HostPlace] = []
    token: str = ""

    def seen_from(self, node: str) -> tuple[list[str], int]:
        """The addresses for an actor of `node`, its own host's first, and how many are as near."""
        near = [place.path for place in self.places if place.node == node]
        far = [place.port for place in self.places if place.node != node and place.port]
        return [*near, *far], len(near) or len(far)


class HostInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a host says once it is ready."""

    place: HostPlace
    processes: list[Process]


class HostProcess:
    """What runs in a host's process."""

    async def start(self, config_json: bytes, run_dir: str, place: bytes, token: str) -> bytes:
        """Serve the pools that actors will ask for; returns a packed HostInfo."""
        config = msgspec.json.decode(config_json, type=RunConfig)
        wanted = msgspec.msgpack.decode(place, type=HostPlace)
        log_to_file(Path(run_dir), wanted.name, config.logging.level)
        make_importable(config.run.imports)  # zygotes get the import path of this process
        self._gone = asyncio.Event()
        self._pool = await EnvPool.start(limits=config.envpool)
        self._folder = Path(wanted.path).parent
        self._host = Host(self._pool, token=token)
        path = await self._host.listen(wanted.path)
        port = await self._host.listen(wanted.port) if wanted.port else ""
        logger.info("ready: pid %d listens at %s %s", os.getpid(), path, port)
        bound = msgspec.structs.replace(wanted, path=path, port=port)
        processes = [
            describe(wanted.name),
            describe(f"{wanted.name}/root", self._pool.root_pid),
        ]
        return msgspec.msgpack.encode(HostInfo(place=bound, processes=processes))

    async def wait(self) -> None:
        """Return when it is closed; a caller learns of its death by the call's failure."""
        await self._gone.wait()

    async def close(self) -> None:
        await self._host.close()
        await self._pool.close()
        with suppress(OSError):  # another host of this machine may be there still
            await asyncio.to_thread(self._folder.rmdir)
        self._gone.set()
