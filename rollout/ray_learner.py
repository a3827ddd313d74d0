"""Ray: the processes of the learner, one for each rank, and how the coordinator's calls reach them.

All ranks get the same calls with the same arguments, and the first one answers. The batch is put into
Ray's object store once, by the coordinator.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol, cast

import msgspec
import ray
from ray.exceptions import RayActorError

from configs.schema import RunConfig
from rollout import types
from rollout.laps import Laps
from rollout.logs import log_to_file
from rollout.processes import describe
from rollout.ray_hosts import Handle, close_actor
from rollout.ready import ProcessInfo, log_ready, shares_cpu
from rollout.types import RankPlace, StepReport, TrainBatch
from rollout.weights import Endpoint, Manifest

logger = logging.getLogger(__name__)

# Calls of the first rank that are answered while it trains.
PUBLISH = "publish"
# How far a learner on the CPU stands back from generation, of 19.
LEARNER_NICENESS = 10
# How much later than its consequences a death may be heard of.
_LATER_S = 3.0


class Sends(Protocol):
    """What sends weights to engines, see `learner/nccl.py`."""

    def open(self, engine: str, address: str) -> Endpoint: ...
    def join(self, engine: str) -> None: ...
    def send(self, engine: str, version: int) -> None: ...


class Trains(Protocol):
    """What a process of the learner calls, synchronously."""

    def train(self, batch: TrainBatch) -> StepReport: ...
    def published(self, version: int) -> Manifest: ...
    def save(self, directory: str) -> None: ...
    def close(self) -> None: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def sender(self) -> Sends: ...


class RankError(RuntimeError):
    """A rank of the learner died, failed or does not answer; the others cannot go on without it."""


class LearnerProcess:
    """What runs in a process of the learner: one rank."""

    def listen(self) -> tuple[str, int]:
        """Where the ranks are to meet; of the first one alone."""
        address = ray.util.get_node_ip_address()
        self._listening = socket.create_server((address, 0))
        return address, self._listening.getsockname()[1]

    def start(
        self,
        trainer: str,
        config_json: bytes,
        run_dir: str,
        checkpoint: str | None,
        rank: int = 0,
        meeting: tuple[str, int] | None = None,
    ) -> bytes:
        """Load the weights to train; returns a packed ProcessInfo.

        `trainer` is `module:function`; the function makes a `Trains` from config, run directory and
        the checkpoint to go on from; of several ranks also from a `RankPlace`.
        """
        laps = Laps()
        name = rank_name(rank)
        config = msgspec.json.decode(config_json, type=RunConfig)
        log_to_file(Path(run_dir), name, config.logging.level)
        if shares_cpu(config):
            # On one machine's CPU the learner has time to spare, and every token waits for the engine.
            os.nice(LEARNER_NICENESS)
        make = resolve_name(trainer)
        laps.end("imports")
        place = [self._place(config, rank, meeting)] if meeting is not None else []
        self._trainer: Trains = make(
            config, Path(run_dir), Path(checkpoint) if checkpoint else None, *place
        )
        laps.end("trainer")
        info = ProcessInfo(
            name=name,
            node=os.uname().nodename,
            node_id=ray.get_runtime_context().get_node_id(),
            processes=[describe(name)],
            num_parameters=self._trainer.num_parameters,
            start_s=laps.seconds,
        )
        what = checkpoint or config.model.path
        log_ready(f"{what} to train", threads=config.learner.threads)
        return msgspec.msgpack.encode(info)

    def train(self, packed: bytes) -> bytes:
        return types.encode(self._trainer.train(types.decode_batch(packed)))

    @ray.method(concurrency_group=PUBLISH)
    def published(self, version: int) -> bytes:
        return msgspec.msgpack.encode(self._trainer.published(version))

    def save(self, directory: str) -> None:
        self._trainer.save(directory)

    def open_group(self, actor: str) -> bytes:
        return types.encode(self._trainer.sender.open(actor, ray.util.get_node_ip_address()))

    def join_group(self, actor: str) -> None:
        self._trainer.sender.join(actor)

    def send(self, actor: str, version: int) -> None:
        self._trainer.sender.send(actor, version)

    def close(self) -> None:
        self._trainer.close()

    def _place(self, config: RunConfig, rank: int, meeting: tuple[str, int]) -> RankPlace:
        address, port = meeting
        return RankPlace(
            rank=rank,
            size=config.learner.ranks,
            address=address,
            port=port,
            listening=self._listening.detach() if rank == 0 else None,
        )


@dataclass(slots=True, frozen=True)
class RayLearner:
    """The learner in other processes."""

    handles: list[Handle]
    """Of the ranks, in their order."""

    async def train(self, batch: TrainBatch) -> StepReport:
        packed: Any = types.encode(batch)
        if len(self.handles) > 1:
            packed = ray.put(packed)
        return types.decode_report(await self._all("train", packed))

    async def published(self, version: int) -> Manifest:
        packed = await self.handles[0].published.remote(version)
        return msgspec.msgpack.decode(packed, type=Manifest)

    async def save(self, directory: str) -> None:
        await self._all("save", directory)

    async def open_group(self, actor: str) -> Endpoint:
        packed = await self.handles[0].open_group.remote(actor)
        return msgspec.msgpack.decode(packed, type=Endpoint)

    async def join_group(self, actor: str) -> None:
        await self._all("join_group", actor)

    async def send(self, actor: str, version: int) -> None:
        await self._all("send", actor, version)

    async def close(self) -> None:
        named = enumerate(self.handles)
        await asyncio.gather(*(close_actor(rank_name(rank), handle) for rank, handle in named))

    async def _all(self, method: str, *args: Any) -> Any:
        """Have every rank do it; returns what the first one does.

        With several, raises RankError as soon as one of them fails.
        """
        if len(self.handles) == 1:
            return await getattr(self.handles[0], method).remote(*args)
        calls = [_answer(getattr(handle, method).remote(*args)) for handle in self.handles]
        return (await together(calls))[0]


def rank_name(rank: int) -> str:
    """What a process of the learner is called in logs."""
    return f"learner-{rank}" if rank else "learner"


def start_ranks(
    config: RunConfig, trainer: str, config_json: bytes, run_dir: str, checkpoint: str | None
) -> dict[str, tuple[Handle, Any]]:
    """Begin to start the learner: by name the handle of each rank, and what is ready once it is."""
    section, meeting = config.learner, None
    starting: dict[str, tuple[Handle, Any]] = {}
    # Ray's own types do not know of groups.
    in_groups: Any = cast(Any, ray.remote)(concurrency_groups={PUBLISH: 1})
    for rank in range(section.ranks):
        handle: Handle = (
            in_groups(LearnerProcess)
            .options(num_cpus=section.num_cpus, num_gpus=section.num_gpus)
            .remote()
        )
        if section.ranks > 1 and rank == 0:
            meeting = handle.listen.remote()
        ready = handle.start.remote(trainer, config_json, run_dir, checkpoint, rank, meeting)
        starting[rank_name(rank)] = handle, ready
    return starting


async def together(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What each rank answers. Raises RankError as soon as one fails, naming the one to blame."""
    tasks = [asyncio.create_task(call, name=f"rank {rank}") for rank, call in enumerate(calls)]
    try:
        _, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = any(task.done() and task.exception() for task in tasks)
        if not failed:
            return [task.result() for task in tasks]
        if waiting:
            # A rank whose peer has died is told at once, and Ray of a death a little later.
            await asyncio.wait(waiting, timeout=_LATER_S)
        errors = {
            rank: error
            for rank, task in enumerate(tasks)
            if task.done() and (error := task.exception()) is not None
        }
        silent = [rank for rank, task in enumerate(tasks) if not task.done()]
    finally:
        for task in tasks:
            task.cancel()
    raise _blamed(errors, silent)


def _blamed(errors: Mapping[int, BaseException], silent: list[int]) -> BaseException:
    """The error of the rank that began it: others only lost, or waited for, a peer."""
    for rank, error in errors.items():
        if isinstance(error, RayActorError):
            made = RankError(
                f"rank {rank} of the learner died (see logs/{rank_name(rank)}.log): {error}"
            )
            made.__cause__ = error
            return made
    own = {rank: error for rank, error in errors.items() if not _is_of_peers(error)}
    if 0 in own:
        return own[0]
    rank, error = next(iter((own or errors).items()))
    if silent and not own:
        names = ", ".join(map(str, silent))
        text = f"rank {names} of the learner does not answer; rank {rank} waited for it: {error}"
    else:
        text = f"rank {rank} of the learner failed: {error}"
    made = RankError(text)
    made.__cause__ = error
    return made


def _is_of_peers(error: BaseException) -> bool:
    """Whether it is what `torch.distributed` raises about other ranks."""
    cause = getattr(error, "cause", error)  # in another process
    return type(cause) is RuntimeError or type(cause).__name__.startswith("Dist")


async def _answer(reference: Any) -> Any:
    return await reference
