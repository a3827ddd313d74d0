"""A coordinator between fakes, in a run directory of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from configs.load import load
from configs.schema import RunConfig
from envpool.source import PoolSource
from rollout import audit
from rollout.coordinator import Coordinator
from rollout.files import RolloutRow, RunFiles
from rollout.metrics import MetricsWriter
from tests.fakes import FakeActor, FakeLearner
from tests.recipes import BASICS


class Clock:
    """Time that can be turned."""

    def __init__(self) -> None:
        self.turned_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.turned_s


class Bench:
    """A coordinator in a temporary run directory."""

    def __init__(self, tmp_path: Path, *settings: str, **ends: object) -> None:
        self.run_dir = tmp_path
        overrides = ["learner.steps=6", "rollout.group_size=4", "rollout.groups_per_step=2"]
        self.config: RunConfig = load([BASICS, *overrides, "checkpoint.every=0", *settings])
        self.actors: list[FakeActor] = ends.get("actors") or [FakeActor()]  # type: ignore[assignment]
        self.learner: FakeLearner = ends.get("learner") or FakeLearner()  # type: ignore[assignment]
        self.files = RunFiles(tmp_path)
        self.clock = Clock()
        self.coordinator = Coordinator(
            config=self.config,
            run_dir=tmp_path,
            sources={n: PoolSource.load(n, s) for n, s in self.config.pools.items()},
            evaluation_sets=ends.get("evaluation_sets") or {},  # type: ignore[arg-type]
            actors={actor.name: actor for actor in self.actors},
            learner=self.learner,
            files=self.files,
            metrics=MetricsWriter(self.files, wandb=None),
            clock=self.clock,
        )

    async def run(self) -> None:
        try:
            async with asyncio.timeout(20):
                await self.coordinator.run()
        finally:
            await asyncio.to_thread(self.files.close)

    async def rows(self) -> list[RolloutRow]:
        return await asyncio.to_thread(lambda: list(audit.rows(self.run_dir)))


async def make_bench(tmp_path: Path, *settings: str, **ends: object) -> Bench:
    return await asyncio.to_thread(lambda: Bench(tmp_path, *settings, **ends))


@asynccontextmanager
async def playing(bench: Bench) -> AsyncIterator[asyncio.Task[None]]:
    """The run goes on inside; it is ended afterwards if it did not end by itself."""
    task = asyncio.create_task(bench.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(bench: Bench, *, step: int) -> None:
    """Wait until a step is trained."""
    await when(lambda: bench.coordinator.steps_done >= step)


async def when(is_so: Callable[[], bool]) -> None:
    """Wait for what nobody tells: it is looked at from outside."""
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
