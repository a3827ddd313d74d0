"""A run that was killed goes on with the pools it had, whatever its recipe and its checkpoint say."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs.load import ConfigError, load
from configs.schema import PoolSection
from rollout import audit, pools, resume, rundir, snapshot
from rollout.coordinator import Coordinator
from rollout.desk import Desk
from rollout.ledger import GroupState
from rollout.pools import PoolState
from rollout.types import TrainBatch
from tests.coordinating import when
from tests.fakes import FakeLearner, make_task
from tests.recipes import BASICS
from tests.resuming import SETTINGS, Killed, go_on, play, sources

ONE = PoolSection(source="tests.other_pools:one", trusted=True, weight=4)
TWO = PoolSection(source="tests.other_pools:two", trusted=True)

Operations = Callable[[Desk], Coroutine[Any, Any, None]]


async def killed_after(
    run_dir: Path, operate: Operations, *, step: int = 7, num_sets: int = 0, killed: int = 8
) -> None:
    """A run, checkpointed at step 3 and 6, whose pools changed after `step` and that was killed."""
    settings = [*SETTINGS, "eval.before=false", "eval.after=false", f"run.dir={run_dir}"]
    config = await asyncio.to_thread(load, settings)
    await asyncio.to_thread(rundir.write_config, run_dir, config)
    learners: list[FakeLearner] = []

    def on_train(batch: TrainBatch) -> None:
        if batch.step == step:
            learners[0].gate.clear()
        if batch.step == killed:
            raise Killed

    async def beside(coordinator: Coordinator, learner: FakeLearner) -> None:
        learners.append(learner)
        await when(lambda: coordinator.steps_done == step)
        await operate(coordinator.desk)
        learner.gate.set()

    (source,) = (await asyncio.to_thread(sources, config)).values()
    tasks = [make_task(pool_version=source.version, number=n) for n in range(num_sets)]
    sets = {"fresh": tasks} if tasks else {}
    await play(run_dir, config, on_train=on_train, beside=beside, sets=sets)


async def test_a_pool_added_after_the_checkpoint_is_not_lost(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("mine", ONE, replace=False)

    await killed_after(tmp_path, operate)
    # Its recipe says what it said: it can be given again.
    config, resumed = await go_on(tmp_path, BASICS, "rollout.max_lag=6")
    assert [key.name for key in resumed.snapshot.pools] == ["basics"]
    assert set(config.pools) == {"basics", "mine"} and config.pools["mine"] == ONE
    part = await play(tmp_path, config, resumed=resumed)
    trained = {g.pool for batch in part.learner.batches for g in batch.groups}
    assert trained == {"basics", "mine"}
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()
    written = msgspec.json.decode(await asyncio.to_thread((tmp_path / "config.json").read_bytes))
    assert set(written["pools"]) == {"basics"}


async def test_a_checkpoint_has_the_pools_too(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("mine", ONE, replace=False)

    await killed_after(tmp_path, operate, step=4)
    await asyncio.to_thread((tmp_path / "pools.json").unlink)
    config, resumed = await go_on(tmp_path)
    assert set(config.pools) == {"basics", "mine"}
    assert [record.name for record in resumed.snapshot.versions] == ["basics", "mine"]


async def test_what_was_queued_of_a_pool_that_was_removed_is_trained_on(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("mine", ONE, replace=False)

    # At the checkpoint of step 9 most of what was queued before it came has been trained on.
    await killed_after(tmp_path, operate, step=2, killed=11)
    config, resumed = await go_on(tmp_path)

    async def remove(coordinator: Coordinator, learner: FakeLearner) -> None:
        learner.gate.clear()
        await when(lambda: learner.is_held)
        await coordinator.desk.remove_pool("mine")
        learner.gate.set()

    def on_train(batch: TrainBatch) -> None:
        if batch.step == 11:
            raise Killed

    queued = [record for record in resumed.snapshot.queued if record.task.pool == "mine"]
    assert queued
    await play(tmp_path, config, resumed=resumed, on_train=on_train, beside=remove)
    # Go on once more from the checkpoint in which it was drawn from, without it.
    config, resumed = await go_on(tmp_path)
    assert set(config.pools) == {"basics"}
    part = await play(tmp_path, config, resumed=resumed)
    trained = {g.group_id for batch in part.learner.batches for g in batch.groups}
    assert {record.id for record in queued} & trained
    assert resumed.snapshot.step == 9
    granted = {grant.task.pool for grant in part.actor.granted if not grant.is_eval}
    assert granted == {"basics"}
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    halves = {r.id for r in resumed.snapshot.running if r.task.pool == "mine"}
    assert {row.state for row in rows if row.group_id in halves} <= {GroupState.CANCELLED}
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


async def test_a_version_that_evaluation_needs_comes_back_and_is_not_drawn_from(
    tmp_path: Path,
) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("mine", ONE, replace=False)
        await desk.remove_pool("basics")

    await killed_after(tmp_path, operate, num_sets=2)
    config, resumed = await go_on(tmp_path)
    assert {r.name: r.state for r in resumed.pools} == {
        "mine": PoolState.LIVE,
        "basics": PoolState.DRAINING,
    }
    # In their order: an evaluation set that names no pool is about the first that has its environment.
    assert list(config.pools) == ["basics", "mine"]
    part = await play(tmp_path, config, resumed=resumed)
    granted = {grant.task.pool for grant in part.actor.granted if not grant.is_eval}
    assert granted == {"mine"}


async def test_a_replaced_version_is_not_asked_for(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("basics", TWO, replace=True)

    await killed_after(tmp_path, operate, num_sets=2)
    config, resumed = await go_on(tmp_path)
    assert config.pools == {"basics": TWO}
    assert [record.state for record in resumed.pools] == [PoolState.LIVE]


async def test_changed_code_of_an_added_pool_is_refused(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        await desk.add_pool("mine", ONE, replace=False)

    await killed_after(tmp_path, operate)
    found = await asyncio.to_thread(pools.read, tmp_path)
    assert found is not None
    changed = [
        msgspec.structs.replace(r, version="0" * 16) if r.name == "mine" else r for r in found.pools
    ]
    path = tmp_path / "pools.json"
    await asyncio.to_thread(rundir.write_json, path, pools.PoolsFile(pools=changed))
    config, resumed = await asyncio.to_thread(resume.check, tmp_path, [])
    served = await asyncio.to_thread(sources, config)
    with pytest.raises(ConfigError, match=r"pool mine has version .* restore its code"):
        resume.check_pools(resumed, served)


async def test_a_run_from_before_pools_were_written_down_goes_on(tmp_path: Path) -> None:
    async def operate(desk: Desk) -> None:
        del desk

    await killed_after(tmp_path, operate)
    await asyncio.to_thread((tmp_path / "pools.json").unlink)
    newest = tmp_path / "checkpoints" / "step_6"
    state = await asyncio.to_thread(snapshot.read, newest)
    old = msgspec.structs.replace(state, versions=[])
    await asyncio.to_thread(snapshot.commit, newest, old)
    config, resumed = await go_on(tmp_path)
    assert set(config.pools) == {"basics"} and resumed.pools == []
