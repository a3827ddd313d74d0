"""Versions that are written while the next step is trained, between fakes that are slow at random."""

import asyncio
from pathlib import Path
from random import Random

import msgspec
import pytest

from rollout.engine import UpdateReport
from rollout.types import StepReport, TrainBatch
from rollout.weights import Manifest
from tests.coordinating import make_bench, playing, until, when
from tests.fakes import FakeActor, FakeLearner


class Files:
    """What two buffers hold; a version that is being written is in none."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.held: list[int | None] = [None, None]

    async def dawdle(self) -> None:
        """Let others come first, some number of times."""
        for _ in range(self.rng.choice([0, 0, 1, 3, 10, 40])):
            await asyncio.sleep(0)

    def check(self, version: int) -> None:
        assert self.held[version % 2] == version, f"{version} is read, and there is {self.held}"


class ReadingActor(FakeActor):
    """Reads the file of a version for a while before it has it."""

    def __init__(self, name: str, files: Files) -> None:
        super().__init__(name)
        self.files = files

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        await self.files.dawdle()
        self.files.check(manifest.version)
        await self.files.dawdle()
        self.files.check(manifest.version)
        return await super().update_weights(manifest)


class WritingLearner(FakeLearner):
    """Announces a version, and writes it before or after; one after another.

    Nothing here keeps it from a buffer that is read.
    """

    def __init__(self, files: Files) -> None:
        super().__init__()
        self.files = files
        self.written = asyncio.Event()
        self.written.set()
        self.pen = asyncio.Event()
        self.pen.set()
        self.share_early = 0.0
        self.error: Exception | None = None
        self.manifests: list[int] = []

    async def train(self, batch: TrainBatch) -> StepReport:
        await self.files.dawdle()
        report = await super().train(batch)
        if report.manifest is None:
            return report
        await self.written.wait()
        self.written.clear()
        version = report.manifest.version
        self.files.held[version % 2] = None
        if self.files.rng.random() < self.share_early:
            self.write(version)
        return msgspec.structs.replace(report, manifest=None, publishing=version)

    def write(self, version: int) -> None:
        self.files.held[version % 2] = version
        self.written.set()

    async def published(self, version: int) -> Manifest:
        await self.files.dawdle()
        await self.pen.wait()
        if self.error is not None:
            raise self.error
        if self.files.held[version % 2] != version:
            self.write(version)
        self.manifests.append(version)
        return Manifest(version=version, step=version)

    async def save(self, directory: str) -> None:
        await self.written.wait()
        await super().save(directory)


def ends(seed: int = 0) -> tuple[list[FakeActor], WritingLearner]:
    files = Files(seed)
    return [ReadingActor(f"actor-{i}", files) for i in range(2)], WritingLearner(files)


@pytest.mark.parametrize(("max_lag", "every"), [(0, 1), (1, 1), (5, 1), (1, 2), (5, 2)])
async def test_each_version_is_written_read_whole_and_held(
    tmp_path: Path, max_lag: int, every: int
) -> None:
    for seed in range(8):
        actors, learner = ends(seed)
        learner.share_early = 0.7
        settings = [f"rollout.max_lag={max_lag}", f"weights.every={every}", "learner.steps=14"]
        bench = await make_bench(
            tmp_path / str(seed), *settings, "checkpoint.every=3", actors=actors, learner=learner
        )
        await bench.run()
        versions = list(range(1, 14 // every + 1))
        assert learner.manifests == versions
        for actor in actors:
            assert actor.loaded == versions
        assert bench.coordinator.ledger.counts().groups["trained"] == 28
        # What a step is told it computes at counts what was produced, written or not.
        assert [batch.version for batch in learner.batches] == [step // every for step in range(14)]


async def test_the_next_step_is_trained_while_a_version_is_written_and_no_other(
    tmp_path: Path,
) -> None:
    actors, learner = ends()
    learner.pen.clear()
    settings = ["rollout.max_lag=5", "learner.steps=6"]
    bench = await make_bench(tmp_path, *settings, actors=actors, learner=learner)
    async with playing(bench) as run:
        await when(lambda: len(learner.batches) == 2)
        assert [actor.loaded for actor in actors] == [[], []]
        # The step before waits for its own buffer: nothing overtakes the version that is written.
        assert bench.coordinator.steps_done == 1
        learner.pen.set()
        await until(bench, step=6)
        await run
    assert [actor.loaded for actor in actors] == [[1, 2, 3, 4, 5, 6]] * 2


async def test_a_run_is_over_when_its_last_version_is_held(tmp_path: Path) -> None:
    actors, learner = ends()
    learner.pen.clear()
    settings = ["learner.steps=1", "checkpoint.every=0"]
    learner.written.set()
    bench = await make_bench(tmp_path, *settings, actors=actors, learner=learner)
    async with playing(bench) as run:
        await when(lambda: len(learner.batches) == 1)
        assert not run.done()
        learner.pen.set()
        await run
    assert [actor.version for actor in actors] == [1, 1]


async def test_a_version_that_cannot_be_written_ends_the_run_with_its_reason(
    tmp_path: Path,
) -> None:
    actors, learner = ends()
    learner.error = OSError("no space left on device")
    bench = await make_bench(tmp_path, actors=actors, learner=learner)
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "no space left" in str(raised.value.exceptions[0])


async def test_a_version_that_is_never_written_ends_the_run_at_the_deadline(
    tmp_path: Path,
) -> None:
    actors, learner = ends()
    learner.pen.clear()
    bench = await make_bench(tmp_path, "weights.deadline_s=0.2", actors=actors, learner=learner)
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    said = str(raised.value.exceptions[0])
    assert "did not write version 1 within weights.deadline_s=0.2" in said
