"""Ray: where actors and the learner run, and how the coordinator's calls reach them.

With `launch.py` and `rollout/ray_{hosts,learner,relay}.py` what imports ray. What crosses is packed msgspec bytes. A call to
a dead process raises, which ends the stage that made it.
"""

import asyncio
import logging
import math
import os
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import ray

from configs.load import make_importable
from configs.schema import PoolSection, RunConfig
from envpool import folder
from envpool.pool import EnvPool, Plugged
from envpool.remote import Hosts
from envpool.task import Config, PoolKey
from rollout import types
from rollout.actor import Actor
from rollout.answers import DrawAnswer, PlugAnswer, TryAnswer
from rollout.engine import UpdateMode, UpdateReport
from rollout.engines import start_engine
from rollout.episode import Limits
from rollout.evaluator import MAX_IN_FLIGHT, NAME, is_wanted
from rollout.hosting import Whereabouts
from rollout.joining import join_groups
from rollout.laps import Laps
from rollout.logs import log_path, log_to_file
from rollout.processes import Process, describe
from rollout.ray_hosts import Handle, RayHosts, close_actor
from rollout.ray_learner import RayLearner, start_ranks
from rollout.ray_relay import Lane, RayRelay, start_relay
from rollout.ready import ProcessInfo, log_ready, shares_cpu
from rollout.resume import Resumed
from rollout.room import asked_for, check_gpus, room
from rollout.types import ActorEvent, Grant
from rollout.weights import Endpoint, Manifest

logger = logging.getLogger(__name__)

# Besides the members it plays, an actor answers the coordinator's calls.
CONTROL_CALLS = 16


class ActorProcess:
    """What runs in an actor's process."""

    async def start(
        self, name: str, config_json: bytes, run_dir: str, weights: str, version: int, hosts: bytes
    ) -> bytes:
        """Load engine, with `weights` as `version`, and environments; returns a packed ProcessInfo.

        `hosts`: packed `Whereabouts`; where it names none, this process has an env pool of its own.
        """
        laps = Laps()
        # It brings transformers: only the processes that compute import it.
        from rollout.tokens import ChatTokens

        # The stepping thread gives the interpreter up at every torch call, and would wait 5 ms to get
        # it back from a busy event loop: measured, a fifth of the engine's throughput.
        sys.setswitchinterval(5e-4)
        laps.end("imports")
        config = msgspec.json.decode(config_json, type=RunConfig)
        log_to_file(Path(run_dir), name, config.logging.level)
        section = config.engine
        if name == NAME:
            section = msgspec.structs.replace(
                section, max_running=MAX_IN_FLIGHT, max_cached=MAX_IN_FLIGHT
            )
        make_importable(config.run.imports)  # zygotes get the import path of this process
        self._pool = await _open_pool(config, hosts)
        laps.end("environments")
        if name == NAME and shares_cpu(config):
            # The engine's threads inherit it: they get what actors and learner leave, however nice
            # those are. Environments, which have deadlines, do not.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        engine = await start_engine(
            config,
            weights,
            name=name,
            section=section,
            version=version,
            log=log_path(Path(run_dir), f"{name}-vllm"),
        )
        self._actor = await Actor.start(
            name=name,
            engine=engine,
            sessions=self._pool,
            tokens=ChatTokens.load(config.model.path),
            limits=Limits.of(config.rollout),
            update_mode=UpdateMode(config.engine.update_mode),
        )
        laps.end("engine")
        pids = self._pool.pids() if isinstance(self._pool, EnvPool) else {}
        others = [describe(f"{name}/zygote-{pool}", pid) for pool, pid in pids.items()]
        others += [describe(f"{name}/engine-{i}", pid) for i, pid in enumerate(engine.pids)]
        info = ProcessInfo(
            name=name,
            node=os.uname().nodename,
            node_id=ray.get_runtime_context().get_node_id(),
            processes=[describe(name), *others],
            num_parameters=engine.num_parameters,
            start_s=laps.seconds,
            layers=self._pool.layers(),
        )
        what = f"{weights} as version {version}, pools {', '.join(config.pools)}"
        log_ready(what, threads=config.engine.threads)
        return msgspec.msgpack.encode(info)

    async def play(self, packed: list[bytes]) -> None:
        await self._actor.play([types.decode_grant(grant) for grant in packed])

    async def cancel(self, group_ids: list[str]) -> None:
        await self._actor.cancel(group_ids)

    async def events(self) -> bytes:
        return types.encode(await self._actor.events())

    async def update_weights(self, packed: bytes) -> UpdateReport:
        return await self._actor.update_weights(msgspec.msgpack.decode(packed, type=Manifest))

    async def join(self, packed: bytes) -> None:
        await self._actor.join(msgspec.msgpack.decode(packed, type=Endpoint))

    async def plug(self, name: str, section: bytes, files: dict[str, bytes] | None) -> bytes:
        decoded = msgspec.msgpack.decode(section, type=PoolSection)
        return await PlugAnswer.of(self._actor.plug(name, decoded, files=files))

    async def draw(
        self, key: tuple[str, str], env: str, level: int, seed: int, count: int
    ) -> bytes:
        drawing = self._actor.draw(PoolKey(*key), env, level=level, seed=seed, count=count)
        return await DrawAnswer.of(drawing)

    async def try_env(self, key: tuple[str, str], env: str, level: int) -> bytes:
        return await TryAnswer.of(self._actor.try_env(PoolKey(*key), env, level=level))

    async def retire(self, key: tuple[str, str]) -> None:
        await self._actor.retire(PoolKey(*key))

    async def close(self) -> None:
        await self._actor.close()
        await self._pool.close()


@dataclass(slots=True, frozen=True)
class RayActor:
    """An actor in another process."""

    name: str
    handle: Handle
    node: str = ""
    """Ray's id of where it is."""
    lane: Lane | None = None
    """What carries weights there, where the learner's files cannot be read."""

    async def play(self, grants: list[Grant]) -> None:
        await self.handle.play.remote([types.encode(grant) for grant in grants])

    async def cancel(self, group_ids: list[str]) -> None:
        await self.handle.cancel.remote(group_ids)

    async def events(self) -> list[ActorEvent]:
        return types.decode_events(await self.handle.events.remote())

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        if self.lane is not None:
            manifest = await self.lane.at(self.node, manifest)
        return await self.handle.update_weights.remote(types.encode(manifest))

    async def join(self, endpoint: Endpoint) -> None:
        await self.handle.join.remote(types.encode(endpoint))

    async def plug(self, name: str, section: PoolSection) -> Plugged:
        packed, files = msgspec.msgpack.encode(section), None
        if folder.is_path(section.source):  # it may not be there where the actor is
            where = f"pools.{name}.source={section.source!r}"
            files = await asyncio.to_thread(folder.read, where, section.source)
        return PlugAnswer.open(await self.handle.plug.remote(name, packed, files))

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        drawn = await self.handle.draw.remote(tuple(key), env, level, seed, count)
        return DrawAnswer.open(drawn)

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        TryAnswer.open(await self.handle.try_env.remote(tuple(key), env, level))

    async def retire(self, key: PoolKey) -> None:
        await self.handle.retire.remote(tuple(key))

    async def close(self) -> None:
        await close_actor(self.name, self.handle)


async def _open_pool(config: RunConfig, packed: bytes) -> EnvPool | Hosts:
    """Where an actor's sessions come from."""
    whereabouts = msgspec.msgpack.decode(packed, type=Whereabouts)
    if not whereabouts.places:
        return await EnvPool.start(config.pools, limits=config.envpool)
    addresses, num_near = whereabouts.seen_from(ray.get_runtime_context().get_node_id())
    return await Hosts.start(
        addresses,
        config.pools,
        limits=config.envpool,
        token=whereabouts.token,
        num_near=num_near,
    )


def join(config: RunConfig) -> None:
    """Connect to the configured cluster, or start one node here that can place the run.

    Raises ConfigError for GPUs that this machine lacks; a cluster may grow.
    """
    section = config.cluster
    if section.address:
        ray.init(address=section.address, log_to_driver=False, logging_level=logging.WARNING)
        return
    num_actors = config.actors.count + is_wanted(config)
    needed = num_actors * config.actors.num_cpus
    needed += config.learner.ranks * config.learner.num_cpus
    ray.init(
        address="local",  # whatever RAY_ADDRESS says: no address means this machine alone
        num_cpus=max(os.cpu_count() or 1, math.ceil(needed)),
        include_dashboard=False,
        object_store_memory=section.object_store_mb << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    check_gpus(config, ray.cluster_resources())


def leave() -> None:
    """Disconnect; ends a cluster that `join` started."""
    ray.shutdown()


@dataclass(slots=True, kw_only=True, frozen=True)
class Placed:
    """The processes of a run, ready."""

    actors: dict[str, RayActor]
    learner: RayLearner | None
    evaluator: RayActor | None
    hosts: RayHosts | None
    relay: RayRelay | None
    infos: list[ProcessInfo]

    @property
    def evaluator_reads(self) -> bool:
        return self.evaluator is None or self.evaluator.lane is None

    @property
    def processes(self) -> list[Process]:
        """Those that were started, and what they started themselves."""
        others = [one.processes for one in (self.hosts, self.relay) if one is not None]
        return list(chain(*(info.processes for info in self.infos), *others))


async def place(
    config: RunConfig, run_dir: Path, *, trainer: str | None, resumed: Resumed | None = None
) -> Placed:
    """Start actors and, given `module:function` of its trainer, the learner, all at once.

    Raises TimeoutError with what the cluster lacks, and whatever a process raised while starting.
    """
    settings = msgspec.json.encode(config.without_secrets()), str(run_dir)
    weights, version = str(resumed.weights if resumed else config.model.path), 0
    checkpoint = None
    if resumed is not None:
        version, checkpoint = resumed.version, str(resumed.checkpoint)
    hosts = await RayHosts.start(*settings) if config.envpool.served_by == "host" else None
    whereabouts = msgspec.msgpack.encode(hosts.whereabouts if hosts else Whereabouts())
    starting: dict[str, tuple[Handle, Any]] = {}
    names = [f"actor-{index}" for index in range(config.actors.count)]
    if trainer is not None and is_wanted(config):
        names.append(NAME)
    for name in names:
        handle: Handle = (
            ray.remote(ActorProcess)
            .options(
                num_cpus=config.actors.num_cpus,
                num_gpus=config.actors.num_gpus,
                max_concurrency=config.engine.max_running + CONTROL_CALLS,
            )
            .remote()
        )
        starting[name] = handle, handle.start.remote(name, *settings, weights, version, whereabouts)
    ranks: dict[str, tuple[Handle, Any]] = {}
    if trainer is not None:
        ranks = start_ranks(config, trainer, *settings, checkpoint)
    timeout_s = config.cluster.start_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            # Whoever fails first: others of the learner may wait for it until their deadline.
            everyone = [ready for _, ready in (*starting.values(), *ranks.values())]
            said = await asyncio.gather(*everyone)
    except TimeoutError as error:
        there, free = ray.cluster_resources(), ray.available_resources()
        raise TimeoutError(
            f"actors and learner were not ready within cluster.start_timeout_s={timeout_s:g}. "
            f"{asked_for(config)}; the cluster has {room(there)}, of which {room(free)} are free"
        ) from error
    infos = [msgspec.msgpack.decode(packed, type=ProcessInfo) for packed in said]
    evaluator = starting.pop(NAME, None)
    # Of the learner, the first rank has the files that others read.
    others = [*ranks][1:]
    nodes = {info.name: info.node_id for info in infos if info.name not in others}
    relay, lanes = await start_relay(config, settings, nodes)
    actors = {
        name: RayActor(name, handle, nodes[name], lanes.get(name))
        for name, (handle, _) in starting.items()
    }
    trains = RayLearner([handle for handle, _ in ranks.values()]) if ranks else None
    if trains is not None and config.weights.is_sent:
        await join_groups(actors, trains, timeout_s=timeout_s)
    return Placed(
        actors=actors,
        learner=trains,
        evaluator=RayActor(NAME, evaluator[0], nodes[NAME], lanes.get(NAME)) if evaluator else None,
        hosts=hosts,
        relay=relay,
        infos=infos,
    )


async def close(placed: Placed) -> None:
    """End every process, all at once; one that does not end by itself is killed."""
    async with asyncio.TaskGroup() as group:
        for actor in filter(None, [*placed.actors.values(), placed.evaluator]):
            group.create_task(actor.close(), name=f"close-{actor.name}")
        if placed.learner is not None:
            group.create_task(placed.learner.close(), name="close-learner")
    for one in (placed.hosts, placed.relay):
        if one is not None:
            await one.close()
