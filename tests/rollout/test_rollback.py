import asyncio
import logging
from pathlib import Path

import pytest

from rollout import checkpoints
from rollout.types import Grant
from tests.coordinating import Bench, make_bench
from tests.fakes import FakeActor, alternating

COLLAPSING = ["learner.steps=16", "alarm.steps=2", "checkpoint.keep=1"]


async def run_that_collapses(tmp_path: Path, *settings: str) -> Bench:
    """Half of its rollouts succeed; from step 6 on until it goes back, hardly any does."""

    def verdict(grant: Grant, member: int) -> float:
        is_down = bench.coordinator.steps_done >= 6
        is_back = any(batch.rollback for batch in bench.learner.batches)
        if is_down and not is_back:
            return 0.1 if member == 0 else 0.0
        return alternating(grant, member)

    bench = await make_bench(tmp_path, *COLLAPSING, *settings, actors=[FakeActor(verdict=verdict)])
    await bench.run()
    return bench


async def test_a_run_that_collapsed_goes_back_to_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    bench = await run_that_collapses(tmp_path, "alarm.rollback=true", "checkpoint.every=2")
    orders = [batch for batch in bench.learner.batches if batch.rollback]
    assert len(orders) == 1
    saved = Path(orders[0].rollback)
    # The best mean of two steps was reached at the second, before the collapse by all means.
    assert checkpoints.step_of(saved) <= 6 < orders[0].step
    assert f"back to the weights of {saved}" in caplog.text and "COLLAPSE" in caplog.text
    # It outlived newer ones until it was needed, though one is kept.
    assert saved.name in {Path(path).name for path in bench.learner.saved}
    assert bench.coordinator.steps_done == 16


async def test_without_being_asked_to_a_run_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await run_that_collapses(tmp_path, "checkpoint.every=2")
    assert not any(batch.rollback for batch in bench.learner.batches)
    assert "set alarm.rollback=true" in caplog.text
    kept = await asyncio.to_thread(lambda: list((tmp_path / "checkpoints").iterdir()))
    assert [path.name for path in kept] == ["step_16"]


async def test_without_a_checkpoint_from_before_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await run_that_collapses(tmp_path, "alarm.rollback=true")
    assert not any(batch.rollback for batch in bench.learner.batches)
    assert caplog.text.count("no checkpoint from before the collapse") == 1
    assert bench.coordinator.steps_done == 16
