"""Fakes of the two ends of the coordinator: actors that answer at once, a learner that only counts."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.pool import Outcome, Plugged
from envpool.source import PoolSource
from envpool.task import Config, PoolKey, Task
from rollout.engine import UpdateReport
from rollout.types import (
    ActorEvent,
    Grant,
    Rollout,
    RolloutDone,
    Row,
    Span,
    StepReport,
    StopReason,
    TrainBatch,
    Turn,
    TurnDone,
)
from rollout.weights import Endpoint, Manifest


def make_task(env: str = "sum_list", pool_version: str = "v", **config: Any) -> Task:
    return Task(pool="basics", pool_version=pool_version, env=env, config=config, seed=1)


def make_turn(index: int = 0, version: int = 0) -> Turn:
    return Turn(
        index=index,
        action="{}",
        observation="1",
        is_bad_call=False,
        num_reply_tokens=2,
        oldest_version=version,
        generate_s=0.0,
        env_s=0.0,
    )


def make_turn_done(group_id: str, member: int, *, attempt: int = 0, version: int = 0) -> TurnDone:
    return TurnDone(
        group_id=group_id,
        member=member,
        attempt=attempt,
        turn=make_turn(version=version),
        reply=Row.pack([7, 8], [-1.0, -1.0], [1, 1], [Span(version, 0, 2)]),
    )


def make_row(*versions: int) -> Row:
    """A row of one context token and one sampled token per version."""
    length = 1 + len(versions)
    spans = [Span(version, 1 + i, 2 + i) for i, version in enumerate(versions)]
    return Row.pack([7] * length, [0.0] + [-1.0] * len(versions), [0] + [1] * len(versions), spans)


_FAULTS = {
    StopReason.ENV_ERROR: Outcome.ENV_ERROR,
    StopReason.GRADER_ERROR: Outcome.GRADER_ERROR,
    StopReason.TIMEOUT: Outcome.TIMEOUT,
}


def make_rollout(
    group_id: str = "g000000",
    member: int = 0,
    *,
    reward: float | None = 1.0,
    versions: tuple[int, ...] = (0,),
    stop: StopReason = StopReason.ANSWERED,
    attempt: int = 0,
) -> Rollout:
    return Rollout(
        group_id=group_id,
        member=member,
        attempt=attempt,
        task_id="basics/sum_list/0",
        pool="basics",
        pool_version="v",
        env="sum_list",
        seed=1,
        stop=stop,
        reward=None if stop.is_fault or stop is StopReason.CANCELLED else reward,
        rows=[] if stop.is_fault or stop is StopReason.CANCELLED else [make_row(*versions)],
        turns=[make_turn(version=min(versions))],
        error="it broke" if stop.is_fault else "",
        fault=_FAULTS.get(stop, Outcome.OK),
        failed_action='{"name": "get"}' if stop in _FAULTS else "",
    )


Verdict = Callable[[Grant, int], float | StopReason | None]


def alternating(grant: Grant, member: int) -> float:
    """Rewards with signal in every group."""
    return float(member % 2)


class FakePools:
    """Pools whose code is imported in this process, and whose sessions nobody opens."""

    def __init__(self) -> None:
        self.served: dict[PoolKey, PoolSource] = {}
        self.retired: list[PoolKey] = []
        self.refusal = ""

    async def plug(
        self, name: str, section: PoolSection, *, files: Mapping[str, bytes] | None = None
    ) -> Plugged:
        if self.refusal:
            raise ConfigError(self.refusal)
        every = msgspec.structs.replace(section, train=[])  # as a zygote, which is not told
        source = await asyncio.to_thread(PoolSource.load, name, every)
        self.served[source.key] = source
        return Plugged(key=source.key, envs=list(source.envs), layers=["none"])

    async def draw(
        self, key: PoolKey, env: str, *, level: int, seed: int, count: int
    ) -> list[Config]:
        rng = Random(seed)
        return [self.served[key].env(env).sample(rng, level) for _ in range(count)]

    async def try_env(self, key: PoolKey, env: str, *, level: int) -> None:
        self.served[key].env(env).sample(Random(0), level)

    async def retire(self, key: PoolKey) -> None:
        self.retired.append(key)
        self.served.pop(key, None)


class FakeActor(FakePools):
    """Ends each granted member in its own task, with what `verdict` says: a reward, a fault, or
    None, which means that it never ends."""

    def __init__(self, name: str = "actor-0", *, verdict: Verdict = alternating) -> None:
        super().__init__()
        self.name = name
        self.version = 0
        self.loaded: list[int] = []
        self.joined: Endpoint | None = None
        self.granted: list[Grant] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._verdict = verdict
        self._news: asyncio.Queue[ActorEvent] = asyncio.Queue()
        self._endless: dict[str, list[tuple[Grant, int]]] = {}

    async def play(self, grants: list[Grant]) -> None:
        for grant in grants:
            self.granted.append(grant)
            for member in grant.members:
                self._end(grant, member)

    def _end(self, grant: Grant, member: int) -> None:
        verdict = self._verdict(grant, member)
        if verdict is None:
            self._endless.setdefault(grant.group_id, []).append((grant, member))
            return
        self._news.put_nowait(
            make_turn_done(grant.group_id, member, attempt=grant.attempt, version=self.version)
        )
        rollout = make_rollout(
            grant.group_id,
            member,
            reward=None if isinstance(verdict, StopReason) else verdict,
            versions=(self.version,),
            stop=verdict if isinstance(verdict, StopReason) else StopReason.ANSWERED,
            attempt=grant.attempt,
        )
        self._news.put_nowait(RolloutDone(rollout=_of_task(rollout, grant.task)))

    def end_one(self, group_id: str) -> None:
        """End the members of a group that would never end."""
        for grant, member in self._endless.pop(group_id):
            rollout = make_rollout(
                group_id, member, reward=alternating(grant, member), versions=(self.version,)
            )
            self._news.put_nowait(RolloutDone(rollout=_of_task(rollout, grant.task)))

    def say(self, event: ActorEvent) -> None:
        """Send an event of its own accord."""
        self._news.put_nowait(event)

    async def cancel(self, group_ids: list[str]) -> None:
        self.cancelled += group_ids
        for group_id in group_ids:
            for grant, member in self._endless.pop(group_id, []):
                rollout = make_rollout(
                    group_id, member, stop=StopReason.CANCELLED, attempt=grant.attempt
                )
                self._news.put_nowait(RolloutDone(rollout=_of_task(rollout, grant.task)))

    async def events(self) -> list[ActorEvent]:
        return [await self._news.get()]

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        await self.gate.wait()
        self.version = manifest.version
        self.loaded.append(manifest.version)
        return UpdateReport(version=manifest.version, load_s=0.0, stall_s=0.0)

    async def join(self, endpoint: Endpoint) -> None:
        self.joined = endpoint

    async def close(self) -> None:
        return None


def _of_task(rollout: Rollout, task: Task) -> Rollout:
    return msgspec.structs.replace(
        rollout,
        task_id=task.id,
        pool=task.pool,
        pool_version=task.pool_version,
        env=task.env,
        seed=task.seed,
    )


def _replace(path: Path, text: str) -> None:
    """Write a file as a publisher does: whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)


class FakeLearner:
    """Takes every batch and publishes what it is asked to, as files in `folder` if there is one."""

    def __init__(
        self,
        *,
        on_train: Callable[[TrainBatch], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._folder = folder
        self.batches: list[TrainBatch] = []
        self.saved: list[str] = []
        self.joined: list[str] = []
        self.sent: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.is_held = False
        self._on_train = on_train

    async def train(self, batch: TrainBatch) -> StepReport:
        await asyncio.sleep(0)
        self.is_held = not self.gate.is_set()
        await self.gate.wait()
        self.is_held = False
        if self._on_train is not None:
            self._on_train(batch)
        self.batches.append(batch)
        manifest = None
        if batch.publish_version is not None:
            path = ""
            if self._folder is not None:
                file = self._folder / f"{batch.publish_version % 2}.safetensors"
                await asyncio.to_thread(_replace, file, str(batch.publish_version))
                path = str(file)
            manifest = Manifest(
                version=batch.publish_version, step=batch.step, path=path, num_bytes=0, checksum=""
            )
        return StepReport(
            step=batch.step, version=batch.version, manifest=manifest, metrics={}, busy=[]
        )

    async def published(self, version: int) -> Manifest:
        raise AssertionError(f"version {version} came with its step's report")

    async def save(self, directory: str) -> None:
        self.saved.append(directory)

    async def open_group(self, actor: str) -> Endpoint:
        return Endpoint(
            address=actor, port=len(self.joined), world_size=2, buffer_bytes=1, num_buffers=2
        )

    async def join_group(self, actor: str) -> None:
        self.joined.append(actor)

    async def send(self, actor: str, version: int) -> None:
        self.sent.append((actor, version))

    async def close(self) -> None:
        return None
