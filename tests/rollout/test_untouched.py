"""What a run evaluates on any configuration, from its start on and after it was stopped."""

import asyncio
import logging
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from configs.load import load
from configs.schema import PoolSection, RunConfig
from envpool.task import Split, Task
from rollout import announce, rundir, snapshot
from rollout.coordinator import Coordinator
from rollout.desk import Desk
from rollout.resume import Resumed
from rollout.run import check
from rollout.types import TrainBatch
from tests.coordinating import when
from tests.fakes import FakeLearner
from tests.recipes import BASICS
from tests.resuming import SETTINGS, Killed, Part, go_on, play

APART = PoolSection(source="tests.other_pools:apart", trusted=True)
Sides = dict[str, set[Split]]


def pool(name: str, attribute: str, **settings: str) -> list[str]:
    told = {"source": f"tests.other_pools:{attribute}", "trusted": "true", **settings}
    return [f"pools.{name}.{key}={value}" for key, value in told.items()]


MINE = pool("mine", "mixed", split="eval")


def sides(tasks: list[Task]) -> Sides:
    return {env: {t.split for t in tasks if t.env == env} for env in {t.env for t in tasks}}


def sets_of(config: RunConfig, resumed: Resumed | None = None) -> dict[str, list[Task]]:
    return check(config, resumed).evaluation_sets


@pytest.mark.parametrize("is_command", [False, True])
def test_a_pool_for_evaluation_is_evaluated_whole_but_for_what_is_trained_on(
    is_command: bool,
) -> None:
    steps = ["learner.steps=0"] if is_command else []
    config = load([BASICS, *MINE, *steps])
    found = check(config, evaluates_every_pool=is_command)
    assert sides(found.evaluation_sets["mine"]) == {
        "price_total": set(Split),
        "sum_list": {Split.EVAL},
    }
    # Of a pool to train on what it does not train on is not evaluated whole either.
    assert sides(found.evaluation_sets["unseen"]) == {"price_total": {Split.EVAL}}


def test_a_set_of_the_recipe_is_drawn_like_the_one_of_a_pool() -> None:
    named = [*MINE, "eval.sets.own.envs=['mine/price_total', 'mine/sum_list']"]
    found = sides(sets_of(load([BASICS, *named]))["own"])
    assert found == {"price_total": set(Split), "sum_list": {Split.EVAL}}
    trained = sides(sets_of(load([BASICS, *named, *pool("more", "apart")]))["own"])
    assert trained["price_total"] == {Split.EVAL}


def test_the_pool_that_the_default_run_never_trains_on_is_evaluated_whole() -> None:
    found = sets_of(load(["local.toml"]))
    assert sides(found["unseen"]) == {"price_total": set(Split)}
    assert len({task.id for task in found["unseen"]}) == len(found["unseen"]) == 25
    for name in ("fresh", "harder", "held_out"):
        assert set().union(*sides(found[name]).values()) == {Split.EVAL}


def test_it_is_said_of_what_configurations_a_pool_is_evaluated_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    announce._evaluations(check(load([BASICS, *MINE])))
    assert caplog.messages[-1].endswith("envs are evaluated on 100 configurations")
    announce._evaluations(check(load([BASICS, *pool("mine", "one", split="eval")])))
    assert caplog.messages[-1].endswith("100 configurations of its evaluation split")


async def killed_after(
    run_dir: Path, *settings: str, change: str, split: Literal["train", "eval"] = "train"
) -> Part:
    """A run that trains on `sum_list` in pool `more` alone; its pools change at step 4, it ends at 8."""
    given = [*SETTINGS, "pools.basics.train=['find_max']", *pool("more", "one"), *settings]
    config = await asyncio.to_thread(load, [*given, f"run.dir={run_dir}"])
    await asyncio.to_thread(rundir.write_config, run_dir, config)
    learners: list[FakeLearner] = []

    def on_train(batch: TrainBatch) -> None:
        if batch.step == 4:
            learners[0].gate.clear()
        if batch.step == 8:
            raise Killed

    async def operate(desk: Desk) -> None:
        if change == "remove":
            await desk.remove_pool("more")
        else:
            section = msgspec.structs.replace(APART, split=split)
            await desk.add_pool("late", section, replace=False)

    async def beside(coordinator: Coordinator, learner: FakeLearner) -> None:
        learners.append(learner)
        await when(lambda: coordinator.steps_done == 4)
        await operate(coordinator.desk)
        learner.gate.set()

    return await play(run_dir, config, on_train=on_train, beside=beside)


async def test_a_run_that_goes_on_draws_the_sets_that_it_had(tmp_path: Path) -> None:
    first = await killed_after(tmp_path, *MINE, change="remove")
    before = await asyncio.to_thread(sets_of, first.coordinator._config)
    assert sides(before["mine"])["sum_list"] == {Split.EVAL}
    config, resumed = await go_on(tmp_path)
    assert "more" not in config.pools
    assert resumed.trained == {"find_max", "sum_list"}
    assert await asyncio.to_thread(sets_of, config, resumed) == before
    # Either of the two files knows it.
    await asyncio.to_thread((tmp_path / "pools.json").unlink)
    config, resumed = await go_on(tmp_path)
    assert await asyncio.to_thread(sets_of, config, resumed) == before
    # And so does the run that goes on: what it trained on is in its record again.
    part = await play(tmp_path, config, resumed=resumed)
    assert part.coordinator._pools.trained == ["find_max", "sum_list"]


async def test_what_was_added_to_train_on_is_not_evaluated_whole_later(tmp_path: Path) -> None:
    await killed_after(tmp_path, change="add")
    config, resumed = await go_on(tmp_path)
    assert "late" in config.pools and "price_total" in (resumed.trained or ())

    async def beside(coordinator: Coordinator, learner: FakeLearner) -> None:
        learner.gate.clear()
        await when(lambda: learner.is_held)
        await coordinator.desk.remove_pool("late")
        section = msgspec.structs.replace(APART, split="eval")
        await coordinator.desk.add_pool("mine", section, replace=False)
        assert sides(coordinator._evaluation_sets["mine"]) == {"price_total": {Split.EVAL}}
        learner.gate.set()

    await play(tmp_path, config, resumed=resumed, beside=beside)


async def test_a_set_that_came_while_the_run_went_on_is_drawn_the_same_again(
    tmp_path: Path,
) -> None:
    part = await killed_after(tmp_path, change="add", split="eval")
    config, resumed = await go_on(tmp_path)
    sets = await asyncio.to_thread(sets_of, config, resumed)
    assert sets["late"] == part.coordinator._evaluation_sets["late"]
    assert sides(sets["late"]) == {"price_total": set(Split)}


async def test_a_run_from_before_it_was_written_down_keeps_to_the_evaluation_split(
    tmp_path: Path,
) -> None:
    await killed_after(tmp_path, *MINE, change="remove")
    path = tmp_path / "pools.json"
    written = msgspec.json.decode(await asyncio.to_thread(path.read_bytes))
    del written["trained"]
    await asyncio.to_thread(rundir.write_json, path, written)
    newest = tmp_path / "checkpoints" / "step_6"
    state = await asyncio.to_thread(snapshot.read, newest)
    await asyncio.to_thread(snapshot.commit, newest, msgspec.structs.replace(state, trained=None))
    config, resumed = await go_on(tmp_path)
    assert resumed.trained is None
    found = await asyncio.to_thread(sets_of, config, resumed)
    assert sides(found["mine"]) == {"price_total": {Split.EVAL}, "sum_list": {Split.EVAL}}
    part = await play(tmp_path, config, resumed=resumed, sets=found)
    assert {"price_total", "sum_list", "find_max"} <= set(part.coordinator._pools.trained)
