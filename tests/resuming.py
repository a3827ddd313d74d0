"""A run with fakes at both ends, killed at some step, and what goes on with it."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load
from configs.schema import RunConfig
from envpool.source import PoolSource
from envpool.task import Task
from rollout import audit, resume, rundir
from rollout.coordinator import Coordinator
from rollout.files import RunFiles
from rollout.metrics import MetricsWriter
from rollout.resume import Resumed
from rollout.scores import Scores
from rollout.types import Grant, TrainBatch
from rollout.weights import note_version, version_log
from tests.fakes import FakeActor, FakeLearner, alternating
from tests.recipes import BASICS

SETTINGS = [
    BASICS,
    "learner.steps=12",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "rollout.max_lag=6",
    "checkpoint.every=3",
]


class Killed(Exception):
    """Stands for the SIGKILL that ends the process."""


@dataclass
class Part:
    """One of the processes that a run was played in."""

    coordinator: Coordinator
    actor: FakeActor
    learner: FakeLearner
    scores: tuple[Scores, Scores] | None
    """Before and after, of one that came to the end."""


def sources(config: RunConfig) -> dict[str, PoolSource]:
    return {name: PoolSource.load(name, section) for name, section in config.pools.items()}


async def play(
    run_dir: Path,
    config: RunConfig,
    *,
    resumed: Resumed | None = None,
    on_train: Callable[[TrainBatch], None] | None = None,
    verdict: Callable[[Grant, int], float | None] = alternating,
    sets: Mapping[str, list[Task]] | None = None,
    beside: Callable[[Coordinator, FakeLearner], Coroutine[Any, Any, None]] | None = None,
) -> Part:
    """Play until the end, or until `on_train` raises `Killed`; `beside` is done meanwhile."""
    files = await asyncio.to_thread(RunFiles, run_dir)
    actor, learner = FakeActor(verdict=verdict), FakeLearner(on_train=on_train)
    actor.version = resumed.version if resumed else 0
    coordinator = Coordinator(
        config=config,
        run_dir=run_dir,
        sources=await asyncio.to_thread(sources, config),
        evaluation_sets=sets or {},
        actors={actor.name: actor},
        learner=learner,
        files=files,
        metrics=MetricsWriter(files, wandb=None),
        clock=time.monotonic,
        resumed=resumed,
    )
    scores = None
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            if beside is not None:
                group.create_task(beside(coordinator, learner))
            scores = await coordinator.run()
    except ExceptionGroup as errors:
        if not errors.subgroup(Killed):
            raise
    finally:
        await asyncio.to_thread(files.close)
    return Part(coordinator, actor, learner, scores)


async def killed_at(
    run_dir: Path, step: int, *settings: str, sets: Mapping[str, list[Task]] | None = None
) -> RunConfig:
    """A run in `run_dir` that was killed while it trained `step`.

    One group, granted just before the newest checkpoint, never ends.
    """
    endless = f"g{2 * ((step - 1) // 3 * 3) + 9:06d}"

    def verdict(grant: Grant, member: int) -> float | None:
        is_endless = grant.group_id == endless and member == 3
        return None if is_endless else alternating(grant, member)

    def on_train(batch: TrainBatch) -> None:
        if batch.step == step:
            raise Killed

    config = await asyncio.to_thread(load, [*SETTINGS, *settings, f"run.dir={run_dir}"])
    await asyncio.to_thread(rundir.write_config, run_dir, config)
    part = await play(run_dir, config, on_train=on_train, verdict=verdict, sets=sets)
    published = max(batch.publish_version or 0 for batch in part.learner.batches)
    # The learner notes a version before it publishes: the one it was killed at is used up too.
    await asyncio.to_thread(note_version, version_log(run_dir), published + 1)
    return config


async def go_on(run_dir: Path, *overrides: str) -> tuple[RunConfig, Resumed]:
    def prepare() -> tuple[RunConfig, Resumed]:
        config, resumed = resume.check(run_dir, list(overrides))
        resume.check_pools(resumed, sources(config))
        resume.begin(run_dir, config, resumed)
        return config, resumed

    return await asyncio.to_thread(prepare)


async def steps_of(run_dir: Path) -> list[tuple[int, int, list[str]]]:
    events = await asyncio.to_thread(lambda: list(audit.events(run_dir, "trained")))
    return [(event["step"], event["version"], event["groups"]) for event in events]
