"""Ray: a host of environments on each node of a cluster."""

import asyncio
import logging
import secrets
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rollout.hosting import HostInfo, HostPlace, HostProcess, Whereabouts
from rollout.processes import Process

logger = logging.getLogger(__name__)

# An actor's handle: ray's own types call what its methods return Never.
Handle = Any

# A host's calls: one that waits for its end, and one that ends it.
CONTROL_CALLS = 4
# A close that takes longer is cut short by killing the process.
CLOSE_S = 5.0


class RayHosts:
    """A host of environments on each node, started again where it died."""

    def __init__(self, config_json: bytes, run_dir: str) -> None:
        self._settings = config_json, run_dir
        self._token = secrets.token_urlsafe()
        self._handles: dict[str, Handle] = {}
        self._infos: dict[str, HostInfo] = {}
        self._keeping: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, config_json: bytes, run_dir: str) -> "RayHosts":
        """Hosts on all nodes that are there now."""
        hosts = cls(config_json, run_dir)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        # A name that nobody could have taken before.
        folder = Path(tempfile.gettempdir()) / f"millrace-{secrets.token_hex(8)}"
        places = [
            HostPlace(
                name=f"host-{number}",
                node=node["NodeID"],
                path=str(folder / f"host-{number}.sock"),
                port=f"{node['NodeManagerAddress']}:0" if len(nodes) > 1 else "",
            )
            for number, node in enumerate(nodes)
        ]
        await asyncio.gather(*(hosts._place(place) for place in places))
        hosts._keeping = [
            asyncio.create_task(hosts._keep(place.name), name=f"keep {place.name}")
            for place in places
        ]
        return hosts

    @property
    def whereabouts(self) -> Whereabouts:
        """For the actors."""
        return Whereabouts(places=[info.place for info in self._infos.values()], token=self._token)

    @property
    def processes(self) -> list[Process]:
        """Of the hosts that are there now."""
        return [process for info in self._infos.values() for process in info.processes]

    async def close(self) -> None:
        """End them."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await asyncio.gather(*(close_actor(name, handle) for name, handle in self._handles.items()))

    async def _place(self, place: HostPlace) -> None:
        """Start a host on its node. Raises RayError."""
        handle: Handle = (
            ray.remote(HostProcess)
            .options(
                num_cpus=0,
                max_concurrency=CONTROL_CALLS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
            )
            .remote()
        )
        self._handles[place.name] = handle
        packed = await handle.start.remote(
            *self._settings, msgspec.msgpack.encode(place), self._token
        )
        info = self._infos[place.name] = msgspec.msgpack.decode(packed, type=HostInfo)
        logger.info("%s: pid %d", place.name, info.processes[0].pid)

    async def _keep(self, name: str) -> None:
        """Start a host again whenever it dies, where it was: sessions go on with another, or wait."""
        while True:
            try:
                await self._handles[name].wait.remote()
                return  # closed
            except RayError as error:
                logger.warning("%s died and is started again: %s", name, type(error).__name__)
            try:
                await self._place(self._infos[name].place)
            except RayError as error:
                logger.warning("%s cannot be started again: %s", name, error)
                return


async def close_actor(name: str, handle: Handle) -> None:
    """Have the process behind a handle close, or kill it."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await handle.close.remote()
    except TimeoutError:
        # As at an interrupt amid a step; what is to be kept is in checkpoints.
        logger.info("%s is busy still after %g s, and is killed", name, CLOSE_S)
    except RayError as error:
        logger.warning("%s cannot close by itself and is killed: %s", name, type(error).__name__)
    ray.kill(handle)
