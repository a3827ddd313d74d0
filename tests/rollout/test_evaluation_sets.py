"""Evaluation sets: which tasks, how decoded, what counts."""

import dataclasses

import pytest

from configs.load import ConfigError
from configs.schema import EvalSet, PoolSection
from envpool.source import PoolSource
from envpool.task import Split, Task, config_split
from rollout.evaluate import Evaluation, draw_sets
from rollout.scores import score
from rollout.types import StopReason
from tests.fakes import make_rollout

SOURCES = {
    "basics": PoolSource.load("basics", PoolSection(source="envpool.envs:basics", trusted=True))
}
SPEC = {"fresh": EvalSet(envs=["sum_list", "find_max"], count=40)}


def drawn(seed: int = 0) -> list[Task]:
    return draw_sets(SPEC, SOURCES, seed=seed)["fresh"]


def test_tasks_are_of_the_evaluation_split_each_once_the_environments_in_turn() -> None:
    tasks = drawn()
    assert {task.split for task in tasks} == {Split.EVAL}
    assert [task.env for task in tasks] == ["sum_list", "find_max"] * 20
    assert len({task.id for task in tasks}) == len(tasks)


def test_of_what_is_never_trained_on_any_configuration_is_drawn() -> None:
    untouched = {("basics", "find_max"), ("other", "sum_list")}
    tasks = draw_sets(SPEC, SOURCES, seed=0, untouched=untouched)["fresh"]
    sides = {env: {t.split for t in tasks if t.env == env} for env in ("find_max", "sum_list")}
    assert sides == {"find_max": set(Split), "sum_list": {Split.EVAL}}


def listed(*numbers: int) -> PoolSource:
    """A pool that lists tasks."""
    section = PoolSection(source="envpool.envs:basics", trusted=True)
    source = PoolSource.load("listed", section)
    tasks = {("sum_list", 0): [{"numbers": [number]} for number in numbers]}
    return dataclasses.replace(source, tasks=tasks)


@pytest.mark.parametrize("seed", range(20))
def test_a_set_has_every_task_of_a_list_that_it_is_as_long_as(seed: int) -> None:
    spec = {"all": EvalSet(envs=["sum_list"], count=17)}
    untouched = {("listed", "sum_list")}
    source = listed(*range(17))
    tasks = draw_sets(spec, {"listed": source}, seed=seed, untouched=untouched)["all"]
    assert sorted(task.config["numbers"][0] for task in tasks) == [*range(17)]
    assert {task.split for task in tasks} == set(Split)
    more = draw_sets(
        {"all": EvalSet(envs=["sum_list"], count=20)}, {"listed": source}, seed=seed,
        untouched=untouched,
    )["all"]  # fmt: skip
    assert len(more) == 20 and len({task.id for task in more}) == 17


def test_a_list_without_a_task_for_evaluation_is_named() -> None:
    numbers = [n for n in range(60) if config_split("sum_list", {"numbers": [n]}) is Split.TRAIN]
    spec = {"all": EvalSet(envs=["sum_list"], count=3)}
    source = listed(*numbers[:7])
    words = r"'sum_list' of pool listed has 7 configurations of level 0, and none .* split='eval'"
    with pytest.raises(ConfigError, match=words):
        draw_sets(spec, {"listed": source}, seed=0)
    assert draw_sets(spec, {"listed": source}, seed=0, untouched={("listed", "sum_list")})["all"]


def test_the_seed_chooses_the_tasks() -> None:
    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_each_task_is_played_sampled_and_greedy() -> None:
    evaluation = Evaluation({"fresh": drawn()[:3]}, "before")
    grants = evaluation.next(100)
    assert [grant.temperature for grant in grants] == [1.0] * 3 + [0.0] * 3
    assert all(grant.is_eval for grant in grants)
    assert evaluation.next(100) == []


def test_a_retry_is_the_same_grant_with_its_attempt_counted() -> None:
    evaluation = Evaluation({"fresh": drawn()[:1]}, "before")
    grant = evaluation.next(1)[0]
    fault = make_rollout(grant.group_id, 0, stop=StopReason.TIMEOUT)
    retried = evaluation.retry(fault)
    assert retried.attempt == 1
    assert (retried.group_id, retried.task) == (grant.group_id, grant.task)


def test_faults_are_counted_apart_and_not_as_zeros() -> None:
    found = score(
        [
            make_rollout("a", 0, reward=1.0),
            make_rollout("b", 0, reward=0.0),
            make_rollout("c", 0, stop=StopReason.ENV_ERROR),
        ]
    )
    assert (found.mean, found.count, found.faults) == (0.5, 2, 1)


def test_the_interval_is_wilsons() -> None:
    # 8 of 10, z = 1.96: Brown, Cai and DasGupta (2001), section 3.1.1.
    found = score([make_rollout(f"g{i}", 0, reward=float(i < 8)) for i in range(10)])
    assert (found.low, found.high) == pytest.approx((0.490, 0.943), abs=1e-3)
