"""Draws of whole runs between fakes: what they may never be, what is measured, and how they go on."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from configs.schema import PoolSection, RunConfig
from envpool.source import PoolSource
from envpool.task import Split, Task
from rollout.curriculum import Curriculum, Share
from rollout.snapshot import Snapshot
from rollout.types import Grant
from tests.coordinating import Bench, make_bench, playing, until, when
from tests.fakes import FakeActor, alternating
from tests.resuming import go_on, killed_at, play, sources

DRAWS = ("uniform", "band", "adaptive", "signal")
LONG = ("learner.steps=100000", "checkpoint.every=0", "rollout.group_size=2")
HELD = (
    "pools.held.source=tests.other_pools:two",
    "pools.held.trusted=true",
    "pools.held.split=eval",
)


def by_env(grant: Grant, member: int) -> float:
    """Some environments are mastered, some out of reach."""
    always = {"find_max": 1.0, "count_even": 0.0}
    return always.get(grant.task.env, alternating(grant, member))


def trained(bench: Bench) -> list[Task]:
    granted = [grant for actor in bench.actors for grant in actor.granted]
    return [grant.task for grant in granted if not grant.is_eval]


async def lines(bench: Bench) -> list[dict[str, float]]:
    data = await asyncio.to_thread((bench.run_dir / "metrics.jsonl").read_bytes)
    return [msgspec.json.decode(line) for line in data.splitlines()]


@pytest.mark.parametrize("draw", DRAWS)
async def test_nothing_of_a_pool_for_evaluation_is_trained_on(tmp_path: Path, draw: str) -> None:
    """One of the recipe, and one that is added to the run."""
    settings = [*LONG, *HELD, f"rollout.draw={draw}", "rollout.explore=1"]
    bench = await make_bench(tmp_path, *settings, actors=[FakeActor(verdict=by_env)])
    section = PoolSection(source="tests.other_pools:one", trusted=True, split="eval")
    async with playing(bench):
        await until(bench, step=2)
        await bench.coordinator.desk.add_pool("mine", section, replace=False)
        await until(bench, step=bench.coordinator.steps_done + 30)
    tasks = trained(bench)
    assert {task.pool for task in tasks} == {"basics"} and len(tasks) > 50
    assert {task.split for task in tasks} == {Split.TRAIN}
    assert {one.key.name for one in bench.coordinator._curriculum.rates.pools} == {"basics"}
    shares = {key for key in (await lines(bench))[-1] if key.endswith("/share")}
    assert {key.split("/")[1] for key in shares} == {"basics"}


async def test_a_pool_that_becomes_one_for_evaluation_is_trained_on_no_more(
    tmp_path: Path,
) -> None:
    bench = await make_bench(tmp_path, *LONG, "rollout.draw=adaptive")
    mine = PoolSection(source="tests.other_pools:one", trusted=True)
    held = PoolSection(source="tests.other_pools:two", trusted=True, split="eval")
    async with playing(bench):
        await until(bench, step=1)
        await bench.coordinator.desk.add_pool("mine", mine, replace=False)
        await when(lambda: any(task.pool == "mine" for task in trained(bench)))
        await bench.coordinator.desk.add_pool("mine", held, replace=True)
        number = len(trained(bench))
        await until(bench, step=bench.coordinator.steps_done + 30)
    later = trained(bench)[number:]
    assert {task.pool for task in later} == {"basics"} and len(later) > 40


async def test_tasks_that_come_again_are_told_apart(tmp_path: Path) -> None:
    """Of a pool whose configurations were drawn when it was added, and of no other."""

    def verdict(grant: Grant, member: int) -> float:
        if grant.task.pool == "basics":
            return alternating(grant, member)
        return alternating(grant, member) if len(grant.task.config["numbers"]) > 4 else 1.0

    settings = [*LONG, "rollout.draw=adaptive"]
    bench = await make_bench(tmp_path, *settings, actors=[FakeActor(verdict=verdict)])
    section = PoolSection(source="tests.other_pools:one", trusted=True, weight=9)
    async with playing(bench):
        await until(bench, step=1)
        await bench.coordinator.desk.add_pool("mine", section, replace=False)
        await until(bench, step=bench.coordinator.steps_done + 60)
    seen = {one.key.name: one.tasks for one in bench.coordinator._curriculum.rates.pools}
    assert not seen["basics"] and len(seen["mine"]) > 50
    assert {one.variance > 0 for one in seen["mine"].values()} == {True, False}
    drawn = {task.id for task in trained(bench) if task.split is Split.TRAIN}
    assert set(seen["mine"]) <= drawn


async def test_an_environment_that_is_mastered_is_drawn_less_and_metrics_show_it(
    tmp_path: Path,
) -> None:
    settings = ["learner.steps=60", "rollout.draw=adaptive", "eval.before=false"]
    bench = await make_bench(tmp_path, *settings, actors=[FakeActor(verdict=by_env)])
    await bench.run()
    last = (await lines(bench))[-1]
    basics = "curriculum/basics"
    assert last[f"{basics}/find_max/pass_rate"] == 1.0
    assert last[f"{basics}/count_even/pass_rate"] == 0.0
    assert last[f"{basics}/sum_list/pass_rate"] == pytest.approx(0.5)
    least = last[f"{basics}/find_max/share"]
    assert 0.02 <= least < last[f"{basics}/sum_list/share"] / 4
    envs = bench.config.pools["basics"].train
    assert sum(last[f"{basics}/{env}/share"] for env in envs) == pytest.approx(1)
    assert 3 < last["curriculum/effective_envs"] < 5 and last["curriculum/measured_frac"] == 1
    drawn = [task.env for task in trained(bench)][100:]
    assert drawn.count("find_max") < drawn.count("sum_list") / 2


def curriculum_of(state: Snapshot, source: PoolSource, config: RunConfig) -> Curriculum:
    share = Share(source=source, weight=1.0, envs=source.train)
    curriculum = Curriculum({source.key: share}, config.rollout, seed=config.run.seed)
    curriculum.restore(state.cursor, state.rates)
    return curriculum


@pytest.mark.parametrize("draw", ["adaptive", "band"])
async def test_a_resumed_run_draws_by_what_was_seen_before(tmp_path: Path, draw: str) -> None:
    await killed_at(tmp_path, 11, f"rollout.draw={draw}")
    config, resumed = await go_on(tmp_path)
    state = resumed.snapshot
    (seen,) = state.rates.pools
    assert state.rates.now > 1 and seen.envs
    part = await play(tmp_path, config, resumed=resumed)
    (source,) = (await asyncio.to_thread(sources, config)).values()
    expected = curriculum_of(state, source, config)
    new = [grant.task for grant in part.actor.granted[len(state.running) :]]
    assert new[:2] == [expected.next().task for _ in range(2)]


async def test_the_draw_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """What is seen is the same whatever the draw."""
    await killed_at(tmp_path, 11, "rollout.draw=uniform")
    config, resumed = await go_on(tmp_path, "rollout.draw=adaptive", "rollout.explore=0.2")
    assert config.rollout.draw == "adaptive" and resumed.snapshot.rates.pools[0].envs
    part = await play(tmp_path, config, resumed=resumed)
    assert part.coordinator.steps_done == 12
