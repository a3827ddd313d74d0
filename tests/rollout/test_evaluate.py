"""Evaluation sets: what is drawn, what is granted, what is said of pools that no set is about."""

from random import Random

import pytest

import launch
from configs.load import ConfigError, load
from configs.schema import EvalSet, PoolSection
from envpool.source import PoolSource
from envpool.task import Split
from rollout.evaluate import DEFAULT_COUNT, Evaluation, default_sets, draw_sets, place
from rollout.run import check
from tests.fakes import make_rollout, make_task
from tests.recipes import BASICS


@pytest.fixture(scope="module")
def sources() -> dict[str, PoolSource]:
    section = PoolSection(source="envpool.envs:basics", trusted=True)
    return {name: PoolSource.load(name, section) for name in ("basics", "more")}


def test_sampled_tasks_are_played_k_times_and_greedy_ones_once() -> None:
    tasks = [make_task(number=number) for number in range(3)]
    evaluation = Evaluation({"fresh": tasks}, "before", samples=4)
    grants = evaluation.next(100)
    assert evaluation.total == len(grants) == 3 * 4 + 3
    sampled = [grant for grant in grants if place(grant.group_id).mode == "sampled"]
    assert {grant.temperature for grant in sampled} == {1.0}
    assert sorted((grant.group_id, *grant.members) for grant in sampled) == [
        (f"eval/before/fresh.sampled/{index}", member) for index in range(3) for member in range(4)
    ]
    greedy = [grant for grant in grants if grant.temperature == 0.0]
    assert [grant.members for grant in greedy] == [[0]] * 3
    assert evaluation.next(1) == []


def test_more_samples_leave_the_first_one_and_greedy_as_they_were() -> None:
    tasks = {"fresh": [make_task(number=number) for number in range(3)]}
    few, many = Evaluation(tasks, "before"), Evaluation(tasks, "before", samples=4)
    assert [g for g in many.next(100) if g.members == [0]] == few.next(100)


def test_results_and_retries_belong_to_a_sample() -> None:
    evaluation = Evaluation({"fresh": [make_task()]}, "before", samples=2)
    group_id = "eval/before/fresh.sampled/0"
    evaluation.record(make_rollout(group_id, 0, reward=1.0))
    evaluation.record(make_rollout(group_id, 1, reward=0.0))
    retry = evaluation.retry(make_rollout(group_id, 1))
    assert (retry.members, retry.attempt) == ([1], 1)
    assert not evaluation.has(make_rollout(group_id, 2))
    assert not evaluation.is_done
    evaluation.record(make_rollout("eval/before/fresh.greedy/0", reward=1.0))
    assert evaluation.is_done
    scores = evaluation.scores()["fresh"]
    assert (scores["sampled"].mean, scores["sampled"].pass_at[2].mean) == (0.5, 1.0)
    assert (scores["greedy"].samples, scores["greedy"].pass_at) == (1, {})
    assert evaluation.row(make_rollout(group_id, 1)).group_size == 2


def test_a_pool_that_no_set_is_about_is_evaluated_on_all_of_its_environments(
    sources: dict[str, PoolSource],
) -> None:
    spec = EvalSet(envs=["basics/sum_list"], count=3)
    drawn = draw_sets({"more": spec}, sources, seed=0)
    (name, tasks), *others = default_sets(sources, drawn, seed=0).items()
    assert not others and name == "all of more"  # the name is taken
    assert {task.pool for task in tasks} == {"more"}
    assert all(task.split is Split.EVAL for task in tasks)
    envs = [task.env for task in tasks]
    assert set(envs) == set(sources["more"].envs) and len(envs) >= DEFAULT_COUNT
    assert len({envs.count(env) for env in envs}) == 1
    assert set(default_sets(sources, {}, seed=0)) == {"basics", "more"}


def test_an_environment_without_evaluation_configurations_says_what_to_do(
    sources: dict[str, PoolSource],
) -> None:
    class Poor:
        @staticmethod
        def sample(rng: Random, level: int) -> dict[str, int]:
            return {"train": 0}

    source = sources["basics"]
    assert source.task("sum_list", {"train": 0}, seed=0).split is Split.TRAIN
    poor = PoolSource(
        name="poor", version="v", envs={"sum_list": Poor}, train=(), trusted=True  # type: ignore[dict-item]
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"'sum_list' of pool poor .* eval\.sets\.NAME\.envs="):
        default_sets({"poor": poor}, {}, seed=0)


def test_only_the_command_evaluates_a_bare_pool() -> None:
    settings = ["pools.mine.source=envpool.envs:basics", "pools.mine.trusted=true"]
    assert not check(load(settings)).evaluation_sets
    checked = check(load(settings), evaluates_every_pool=True)
    assert checked.default_sets == tuple(checked.evaluation_sets) == ("mine",)
    local = check(load([BASICS]), evaluates_every_pool=True)
    assert not local.default_sets and next(iter(local.evaluation_sets)) == "fresh"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("eval.samples=0", ["eval.samples=0", ">= 1"]),
        ("eval.samples=2.5", ["eval.samples=2.5", "int"]),
        ("eval.sets.fresh.count=0", [">= 1", "count"]),
        ("eval.sets.fresh.envs=['nope']", ["eval.sets.fresh.envs", "'nope'", "tiny/sum_list"]),
        ("eval.sets.mine.count=3", ["eval.sets.mine.envs is missing"]),
    ],
)
def test_a_mistake_exits_2_and_is_named(
    setting: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["eval", setting]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_the_commands_help_names_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["eval", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("eval.samples", "pass@k", "pass^k", "model.path=DIR"))
