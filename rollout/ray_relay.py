"""Ray: what carries weights to nodes that cannot read the learner's files, as `rollout/relay.py` cuts them.

    learner's node            object store                      each node with engines
    RelayProcess -- chunk --> one copy, pulled by each node --> RelayProcess -- file --> engines

A chunk is what a call returned, so that it belongs to the driver and is freed when every node took it.
The engines play meanwhile: they hear of a version when it lies on their node.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.schema import RunConfig
from rollout.changes import Bytes
from rollout.evaluator import NAME
from rollout.logs import log_to_file
from rollout.processes import Process, describe
from rollout.ray_hosts import Handle, close_actor
from rollout.relay import Chunk, Parcel, Receiver, Sender
from rollout.weights import CARRIED, Manifest, WeightsError, run_id

logger = logging.getLogger(__name__)

# Chunks under way at once: the next ones are cut while one is written.
WINDOW = 4
# Of `weights.deadline_s`, what carrying a version may take; in the rest the engines load it.
CARRY_SHARE = 0.8
# Hex digits of a node's id that tell it apart.
_ID_DIGITS = 12


class RelayProcess:
    """What runs on each node: it sends, or receives, for any number of lanes."""

    def start(self, name: str, config_json: bytes, run_dir: str, node: str) -> bytes:
        """Make ready; returns the packed `Process`."""
        self._config = msgspec.json.decode(config_json, type=RunConfig)
        log_to_file(Path(run_dir), name, self._config.logging.level)
        self._run_dir = Path(run_dir)
        self._node = node
        self._senders: dict[str, Sender] = {}
        self._receivers: dict[str, Receiver] = {}
        process = describe(name)
        logger.info("ready: pid %d", process.pid)
        return msgspec.msgpack.encode(process)

    def open(self, lane: str, delta: bool, packed: bytes) -> bytes:
        """See `Sender`."""
        sender = self._senders.setdefault(lane, Sender(delta=delta))
        return msgspec.msgpack.encode(sender.open(msgspec.msgpack.decode(packed, type=Manifest)))

    def chunk(self, lane: str, version: int, index: int, has_base: bool) -> tuple[bytes, Bytes]:
        chunk, data = self._senders[lane].chunk(version, index, has_base=has_base)
        return msgspec.msgpack.encode(chunk), data

    def done(self, lane: str) -> None:
        self._senders[lane].done()

    def begin(self, lane: str, delta: bool, packed: bytes) -> bool:
        """See `Receiver`."""
        if lane not in self._receivers:
            self._receivers[lane] = Receiver(
                f"{run_id(self._run_dir)}{CARRIED}{self._node[:_ID_DIGITS]}-{lane}",
                directory=Path(self._config.weights.dir),
                fallback=self._run_dir / "weights",
                delta=delta,
            )
        return self._receivers[lane].begin(msgspec.msgpack.decode(packed, type=Parcel))

    def take(self, lane: str, sent: tuple[bytes, Bytes]) -> None:
        packed, data = sent
        self._receivers[lane].take(msgspec.msgpack.decode(packed, type=Chunk), data)

    def finish(self, lane: str, version: int) -> bytes:
        return msgspec.msgpack.encode(self._receivers[lane].finish(version))

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()


@dataclass(slots=True, kw_only=True)
class Lane:
    """Carries versions to the nodes of some readers, which all ask for each, or skip it."""

    name: str
    sender: Handle
    receivers: Mapping[str, Handle]
    """By node id; where a reader of the learner's node is one, it gets a file of its own too."""
    hosts: Mapping[str, str]
    """What the nodes are called."""
    delta: bool
    deadline_s: float
    _version: int | None = None
    _found: "asyncio.Future[dict[str, Manifest]] | None" = None
    _num_taken: dict[str, int] = field(default_factory=dict)
    _num_chunks: int = 0

    async def at(self, node: str, manifest: Manifest) -> Manifest:
        """The same version as a file of a node; whoever asks first has it carried to all of them.

        Raises WeightsError that names version, node and chunk.
        """
        found = self._found
        if found is None or self._version != manifest.version:
            self._version = manifest.version
            self._found = found = asyncio.get_running_loop().create_future()
            try:
                found.set_result(await self._carry(manifest))
            finally:
                if not found.done():
                    found.cancel()  # whoever else waits belongs to the same update
                    self._found = None
        return (await asyncio.shield(found))[node]

    async def _carry(self, manifest: Manifest) -> dict[str, Manifest]:
        self._num_taken = dict.fromkeys(self.receivers, 0)
        self._num_chunks = 0
        allowed_s = CARRY_SHARE * self.deadline_s
        try:
            async with asyncio.timeout(allowed_s):
                return await self._carried(manifest)
        except TimeoutError as error:
            node = min(self._num_taken, key=self._num_taken.__getitem__)
            raise WeightsError(
                f"version {manifest.version}: {self.hosts[node]} had {self._num_taken[node]} of "
                f"{self._num_chunks} chunks after {allowed_s:g} s, {CARRY_SHARE:g} of "
                f"weights.deadline_s={self.deadline_s:g}; raise it, or find out what is slow between "
                "the learner's node and that one"
            ) from error
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__

    async def _carried(self, manifest: Manifest) -> dict[str, Manifest]:
        what = f"version {manifest.version}"
        packed = msgspec.msgpack.encode(manifest)
        opened = await _of(f"{what}: the learner's node", self._call("open", packed))
        parcel = msgspec.msgpack.decode(opened, type=Parcel)
        self._num_chunks = parcel.num_chunks
        has_base: dict[str, bool] = {}
        for node, receiver in self.receivers.items():
            beginning = receiver.begin.remote(self.name, self.delta, opened)
            has_base[node] = await _of(f"{what}: {self.hosts[node]}", beginning)
        room = asyncio.Semaphore(WINDOW)
        async with asyncio.TaskGroup() as group:
            for index in range(parcel.num_chunks):
                await room.acquire()
                carrying = self._carry_chunk(parcel, index, has_base)
                task = group.create_task(carrying, name=f"chunk-{index}")
                task.add_done_callback(lambda _: room.release())
        found: dict[str, Manifest] = {}
        ends = {
            node: receiver.finish.remote(self.name, manifest.version)
            for node, receiver in self.receivers.items()
        }
        for node, end in ends.items():
            finished = await _of(f"{what}: {self.hosts[node]}", end)
            found[node] = msgspec.msgpack.decode(finished, type=Manifest)
        await _of(f"{what}: the learner's node", self.sender.done.remote(self.name))
        return found

    def _call(self, method: str, packed: bytes) -> Any:
        return getattr(self.sender, method).remote(self.name, self.delta, packed)

    async def _carry_chunk(self, parcel: Parcel, index: int, has_base: dict[str, bool]) -> None:
        """Once out of the sender for each form, then to every node that takes that form."""
        version = parcel.manifest.version
        sent = {
            form: self.sender.chunk.remote(self.name, version, index, form)
            for form in set(has_base.values())
        }
        taking = {
            node: self.receivers[node].take.remote(self.name, sent[form])
            for node, form in has_base.items()
        }
        for node, taken in taking.items():
            what = f"version {version}: chunk {index} of {parcel.num_chunks} to {self.hosts[node]}"
            await _of(what, taken)
            self._num_taken[node] += 1


async def _of(what: str, call: Any) -> Any:
    """What a call of a relay returns; raises WeightsError that says which it was."""
    try:
        return await call
    except RayTaskError as error:
        raise WeightsError(f"{what}: {error.cause or error}") from error
    except RayError as error:
        raise WeightsError(f"{what}: {type(error).__name__}: {error}") from error


class RayRelay:
    """A relay process on the learner's node and on each node that weights are carried to."""

    def __init__(self, handles: Mapping[str, Handle], processes: list[Process]) -> None:
        self._handles = handles
        self.processes = processes

    @classmethod
    async def start(cls, settings: tuple[bytes, str], nodes: list[str]) -> "RayRelay":
        """On these nodes. Raises RayError."""
        handles: dict[str, Handle] = {
            node: ray.remote(RelayProcess)
            .options(
                num_cpus=0,
                max_concurrency=2 * WINDOW,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote()
            for node in nodes
        }
        started = [
            handle.start.remote(f"relay-{number}", *settings, node)
            for number, (node, handle) in enumerate(handles.items())
        ]
        processes = [msgspec.msgpack.decode(await one, type=Process) for one in started]
        return cls(handles, processes)

    def lane(self, name: str, *, source: str, nodes: set[str], config: RunConfig) -> Lane:
        """What carries versions from the learner's node, `source`, to these."""
        section = config.weights
        hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
        return Lane(
            name=name,
            sender=self._handles[source],
            receivers={node: self._handles[node] for node in sorted(nodes)},
            hosts={node: f"node {hosts[node]} ({node[:_ID_DIGITS]})" for node in nodes},
            delta=section.delta,
            deadline_s=section.deadline_s,
        )

    async def close(self) -> None:
        """End them, and with them their files."""
        await asyncio.gather(
            *(close_actor(f"relay of {node}", one) for node, one in self._handles.items())
        )


def here() -> str:
    """The id of the node that this process is on."""
    return ray.get_runtime_context().get_node_id()


async def start_relay(
    config: RunConfig, settings: tuple[bytes, str], nodes: Mapping[str, str]
) -> tuple[RayRelay | None, dict[str, Lane]]:
    """What carries weights to those who cannot read the learner's files, and the lane of each.

    `nodes`: where everybody is, the learner too if there is one. Raises RayError.
    """
    source, weights = nodes.get("learner"), config.weights
    if source is None or weights.is_sent:
        return None, {}
    readers = {name: node for name, node in nodes.items() if name != "learner"}
    # A server reads weights itself, wherever the actor is that asks it.
    is_read_elsewhere = config.engine.kind == "http"
    far = {
        name: at
        for name, at in readers.items()
        if weights.transport == "relay" or (at != source and not is_read_elsewhere)
    }
    if not far:
        return None, {}
    relay = await RayRelay.start(settings, sorted({source, *far.values()}))
    lanes: dict[str, Lane] = {}
    # The evaluator loads some versions, at its own time.
    for lane, names in (("engines", far.keys() - {NAME}), ("evaluator", far.keys() & {NAME})):
        if names:
            reached = {far[name] for name in names}
            one = relay.lane(lane, source=source, nodes=reached, config=config)
            lanes |= dict.fromkeys(names, one)
    logger.info("weights are carried through Ray to %s", ", ".join(sorted(far)))
    return relay, lanes
