"""The mixture: shares of pools, environments and tasks, the training split, requeued tasks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import PoolSection, RolloutSection
from envpool.source import PoolSource
from envpool.task import Config, PoolKey, Split, Task
from rollout.curriculum import CANDIDATES, MAX_NAMED_ENVS, Curriculum, NothingToDrawError, Share
from rollout.metrics import Values
from rollout.pass_rates import ENV_VISITS, Rates

SOURCE = PoolSource.load("basics", PoolSection(source="envpool.envs:basics", trusted=True))
ENVS = ("find_max", "sum_list", "walk_list")
DRAWS = ("uniform", "band", "adaptive", "signal")

PASSED, FAILED, MIXED = [1.0] * 4, [0.0] * 4, [0.0, 1.0] * 20
SELDOM = [1.0] + [0.0] * 9


def make(
    draw: str = "uniform", seed: int = 0, *, source: PoolSource = SOURCE, **rollout: float
) -> Curriculum:
    share = Share(source=source, weight=1.0, envs=ENVS)
    section = msgspec.convert({"draw": draw, **rollout}, RolloutSection)
    return Curriculum({source.key: share}, section, seed=seed)


def task_of(env: str, source: PoolSource = SOURCE, number: int = 0) -> Task:
    return source.task(env, source.draw(env, Random(number), Split.TRAIN), seed=number)


def see(curriculum: Curriculum, rounds: int = 1, **rewards: Sequence[float]) -> None:
    """Groups of each environment named, round after round."""
    for number in range(rounds):
        for env, one in rewards.items():
            curriculum.note(task_of(env, number=number), one)


def counts(curriculum: Curriculum, number: int = 600) -> Counter[str]:
    return Counter(curriculum.next().task.env for _ in range(number))


def shares(values: Values) -> dict[str, float]:
    """By environment."""
    return {key.split("/")[2]: value for key, value in values.items() if key.endswith("/share")}


# -- whatever the draw --------------------------------------------------------------------------


@pytest.mark.parametrize("draw", DRAWS)
def test_only_training_configurations_are_drawn(draw: str) -> None:
    curriculum, rng = make(draw), Random(0)
    for _ in range(300):
        task = curriculum.next().task
        assert task.split is Split.TRAIN
        curriculum.note(task, [float(rng.random() < 0.5) for _ in range(4)])


@pytest.mark.parametrize("draw", DRAWS)
def test_only_training_configurations_of_a_list_are_drawn(draw: str) -> None:
    source = listing(*({"numbers": [number]} for number in range(40)))
    curriculum = make(draw, source=source)
    drawn = [curriculum.next().task for _ in range(300)]
    assert {task.split for task in drawn} == {Split.TRAIN}
    assert any(source.count(env, Split.EVAL) for env in ENVS)  # there was something to get wrong


def test_the_nth_task_depends_on_seed_and_cursor_alone() -> None:
    one, other = make(), make()
    for _ in range(5):
        one.next()
    other.cursor = 5
    assert one.next().task == other.next().task
    assert make(seed=1).next().task != make(seed=0).next().task


rewards_lists = st.lists(st.floats(-3, 3), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(draw=st.sampled_from(DRAWS), data=st.data(), seed=st.integers(0, 99))
def test_after_any_outcomes_shares_are_shares_and_a_resumed_run_draws_the_same(
    draw: str, data: st.DataObject, seed: int
) -> None:
    source = listing(*({"numbers": [number]} for number in range(9)))
    curriculum = make(draw, seed, source=source)
    outcomes = data.draw(st.lists(rewards_lists, max_size=40))
    for rewards in outcomes:
        curriculum.note(curriculum.next().task, rewards)
    values = curriculum.values()
    least = 0.1 / len(ENVS) if draw in ("band", "adaptive") else 0.0
    assert sum(shares(values).values()) == pytest.approx(1)
    assert all(0 < part <= 1 and part >= least - 1e-9 for part in shares(values).values())
    assert 1 <= values["curriculum/effective_envs"] <= len(ENVS) + 1e-9
    assert all(0 <= v <= 1 for key, v in values.items() if key.endswith("/pass_rate"))

    other = make(draw, seed, source=source)
    saved = msgspec.msgpack.encode(curriculum.rates)
    other.restore(curriculum.cursor, msgspec.msgpack.decode(saved, type=Rates))
    assert other.values() == values
    for number in range(40):
        task = curriculum.next().task
        assert other.next().task == task
        for one in (curriculum, other):
            one.note(task, outcomes[number % len(outcomes)] if outcomes else MIXED)
    assert other.rates == curriculum.rates


# -- environments -------------------------------------------------------------------------------


def test_environments_are_drawn_evenly() -> None:
    curriculum = make()
    see(curriculum, 20, find_max=FAILED, sum_list=MIXED, walk_list=PASSED)
    assert all(150 < number < 250 for number in counts(curriculum).values())
    assert shares(curriculum.values()) == pytest.approx(dict.fromkeys(ENVS, 1 / 3))


@pytest.mark.parametrize(("draw", "is_favoured"), [("signal", True), ("uniform", False)])
def test_environments_with_signal_are_drawn_more_often(draw: str, is_favoured: bool) -> None:
    curriculum = make(draw)
    see(curriculum, 100, sum_list=MIXED, find_max=FAILED)
    found = counts(curriculum)
    assert (found["sum_list"] > 5 * found["find_max"]) is is_favoured
    assert found["find_max"] > 0  # a policy may forget: nothing is given up


def test_signal_is_squared_and_has_a_floor() -> None:
    curriculum = make("signal")
    see(curriculum, 200, sum_list=MIXED, find_max=FAILED)
    assert shares(curriculum.values()) == {
        "find_max": pytest.approx(0.15**2 / 2.0225),
        "sum_list": pytest.approx(1 / 2.0225),
        "walk_list": pytest.approx(1 / 2.0225),  # never seen
    }


@pytest.mark.parametrize(
    ("rewards", "is_in"),
    [(FAILED, False), (SELDOM, False), ([1.0, 0.0], True), ([0.2], True), ([0.9], True)],
)
def test_a_band_has_its_upper_end_and_not_its_lower(rewards: list[float], is_in: bool) -> None:
    curriculum = make("band", band_low=0.1, band_high=0.9, explore=0.0)
    see(curriculum, find_max=rewards, sum_list=MIXED)
    found = shares(curriculum.values())
    assert found["sum_list"] == found["walk_list"] == pytest.approx(1 / (2 + is_in))
    assert found["find_max"] == (pytest.approx(1 / 3) if is_in else 0)


def test_the_share_that_explores_goes_to_all_alike() -> None:
    curriculum = make("band", explore=0.3)
    see(curriculum, 5, find_max=FAILED, sum_list=PASSED, walk_list=MIXED)
    expected = {"find_max": 0.1, "sum_list": 0.1, "walk_list": 0.8}
    assert shares(curriculum.values()) == pytest.approx(expected)
    found = counts(curriculum, 1000)
    assert {env: found[env] / 1000 for env in ENVS} == pytest.approx(expected, abs=0.04)


def test_with_nothing_in_the_band_all_are_drawn_alike() -> None:
    curriculum = make("band", explore=0.0)
    see(curriculum, find_max=FAILED, sum_list=PASSED, walk_list=PASSED)
    assert shares(curriculum.values()) == pytest.approx(dict.fromkeys(ENVS, 1 / 3))


def test_adaptive_draws_where_rewards_differ_most() -> None:
    """Variances .25, .09 and 0, where each is seen as often as the others."""
    curriculum = make("adaptive", explore=0.0)
    see(curriculum, 40, find_max=SELDOM, sum_list=MIXED, walk_list=PASSED)
    found = shares(curriculum.values())
    assert found["sum_list"] / found["find_max"] == pytest.approx(0.25 / 0.1, rel=0.05)
    assert 0 < found["walk_list"] < 0.01
    assert counts(curriculum)["sum_list"] > 350


def test_tasks_all_passed_beside_tasks_never_passed_teach_nothing() -> None:
    """Their environment is passed half the time, and no group of it has signal."""
    curriculum = make("adaptive", explore=0.0)
    for number in range(40):
        see(curriculum, find_max=PASSED if number % 2 else FAILED, sum_list=SELDOM)
    values = curriculum.values()
    assert values["curriculum/basics/find_max/pass_rate"] == pytest.approx(0.5, abs=0.05)
    assert shares(values)["find_max"] < 0.1 * shares(values)["sum_list"]


def test_how_many_members_a_group_has_does_not_matter() -> None:
    curriculum = make("adaptive", explore=0.0)
    for number in range(64):
        # Two members of a task passed with .5 have signal every other time.
        pair = [0.0, 1.0] if number % 2 else [1.0, 1.0] if number % 4 else [0.0, 0.0]
        see(curriculum, find_max=pair, sum_list=MIXED)
    found = shares(curriculum.values())
    assert found["find_max"] == pytest.approx(found["sum_list"], rel=0.1)


@pytest.mark.parametrize("draw", ["band", "adaptive"])
def test_an_environment_that_comes_into_reach_is_drawn(draw: str) -> None:
    curriculum = make(draw)
    see(curriculum, 100, find_max=FAILED, sum_list=MIXED, walk_list=MIXED)
    before = shares(curriculum.values())["find_max"]
    see(curriculum, 15, find_max=MIXED, sum_list=MIXED, walk_list=MIXED)
    after = shares(curriculum.values())["find_max"]
    assert before < 0.05 and after > 0.2


@pytest.mark.parametrize("draw", ["band", "adaptive"])
def test_what_was_seen_long_ago_is_forgotten(draw: str) -> None:
    curriculum = make(draw, explore=0.0)
    see(curriculum, find_max=FAILED)
    assert "curriculum/basics/find_max/pass_rate" in curriculum.values()
    see(curriculum, int(3 * ENV_VISITS), sum_list=MIXED, walk_list=MIXED)
    values = curriculum.values()
    assert shares(values)["find_max"] == pytest.approx(1 / 3, abs=0.03)
    assert "curriculum/basics/find_max/pass_rate" not in values
    assert set(curriculum.rates.pools[0].envs) == {"sum_list", "walk_list"}


# -- single tasks -------------------------------------------------------------------------------


def listing(*configs: Config) -> PoolSource:
    """The pool, with configurations listed in place of those its environments would make."""
    return replace(SOURCE, tasks={(env, 0): list(configs) for env in ENVS})


def of_training(env: str, number: int) -> list[Config]:
    configs = ({"numbers": [one]} for one in range(100))
    source = listing(*configs)
    found: dict[str, Config] = {}
    rng = Random(0)
    while len(found) < number:
        task = source.task(env, source.draw(env, rng, Split.TRAIN), seed=0)
        found[task.id] = task.config
    return list(found.values())


def drawn_tasks(curriculum: Curriculum, number: int = 2000) -> Counter[str]:
    return Counter(str(curriculum.next().task.config) for _ in range(number))


def make_listed(
    draw: str, configs: list[Config], *, bars: "Bars | None" = None, **rollout: float
) -> Curriculum:
    source = replace(SOURCE, tasks={("sum_list", 0): configs}, train=("sum_list",))
    section = msgspec.convert({"draw": draw, **rollout}, RolloutSection)
    share = Share(source=source, weight=1.0, envs=source.train)
    return Curriculum({source.key: share}, section, seed=0, bars=bars)


@pytest.mark.parametrize("draw", ["band", "adaptive"])
def test_of_listed_tasks_those_neither_mastered_nor_out_of_reach_are_drawn(draw: str) -> None:
    easy, hard, right, unknown = configs = of_training("sum_list", 4)
    curriculum = make_listed(draw, configs)
    for config, rewards in ((easy, PASSED), (hard, FAILED), (right, MIXED)):
        curriculum.note(SOURCE.task("sum_list", config, seed=0), rewards)
    found = drawn_tasks(curriculum)
    most = max(found[str(easy)], found[str(hard)])
    assert 0 < most < found[str(right)] / 2
    assert found[str(unknown)] > 1.5 * most  # there may be something to learn


@pytest.mark.parametrize("draw", ["uniform", "signal"])
def test_other_draws_do_not_tell_tasks_apart(draw: str) -> None:
    configs = of_training("sum_list", 2)
    curriculum = make_listed(draw, configs)
    for _ in range(5):
        curriculum.note(SOURCE.task("sum_list", configs[0], seed=0), FAILED)
        curriculum.note(SOURCE.task("sum_list", configs[1], seed=0), MIXED)
    assert 900 < drawn_tasks(curriculum)[str(configs[0])] < 1100


def test_a_task_is_preferred_to_no_more_than_those_it_is_chosen_from() -> None:
    configs = of_training("sum_list", 64)
    curriculum = make_listed("adaptive", configs, explore=0.0)
    for config in configs:
        rewards = MIXED if config == configs[0] else FAILED
        curriculum.note(SOURCE.task("sum_list", config, seed=0), rewards)
    found = drawn_tasks(curriculum)
    assert 5 * 2000 / 64 < found[str(configs[0])] < CANDIDATES * 2000 / 64


class Bars:
    """Some tasks in quarantine."""

    def __init__(self, *configs: Config) -> None:
        self.configs = configs
        self.envs: list[str] = []

    def bars(self, task: Task) -> bool:
        return task.config in self.configs

    def bars_env(self, key: PoolKey, env: str) -> bool:
        return env in self.envs

    def bar_env(self, key: PoolKey, env: str, reason: str) -> None:
        self.envs.append(env)


def test_what_is_in_quarantine_is_not_preferred_to_what_can_be_drawn() -> None:
    """The only task of the band is in quarantine: the environment is not."""
    configs = of_training("sum_list", 3)
    bars = Bars(configs[0])
    curriculum = make_listed("band", configs, explore=0.0, bars=bars)
    for config in configs[1:]:
        curriculum.note(SOURCE.task("sum_list", config, seed=0), PASSED)
    assert set(drawn_tasks(curriculum, 200)) == {str(config) for config in configs[1:]}
    assert not bars.envs


def test_an_environment_all_of_whose_tasks_are_in_quarantine_is_too() -> None:
    configs = of_training("sum_list", 3)
    bars = Bars(*configs)
    with pytest.raises(NothingToDrawError, match="basics"):
        make_listed("adaptive", configs, bars=bars).next()
    assert bars.envs == ["sum_list"]


def test_tasks_of_a_generator_are_not_kept() -> None:
    curriculum = make("adaptive")
    see(curriculum, 50, sum_list=MIXED)
    assert curriculum.rates.pools[0].tasks == {}


# -- pools --------------------------------------------------------------------------------------


def test_pools_are_drawn_by_weight() -> None:
    other = PoolSource.load(
        "other", PoolSection(source="envpool.envs:basics", train=["sum_list"], trusted=True)
    )
    shares_of = {
        SOURCE.key: Share(source=SOURCE, weight=3.0, envs=ENVS),
        other.key: Share(source=other, weight=1.0, envs=other.train),
    }
    curriculum = Curriculum(shares_of, RolloutSection(draw="adaptive"), seed=0)
    # What is known of environments says nothing about pools.
    see(curriculum, 5, find_max=FAILED, sum_list=FAILED, walk_list=FAILED)
    drawn = Counter(curriculum.next().task.pool for _ in range(400))
    assert 250 < drawn["basics"] < 350 and drawn.total() == 400
    assert curriculum.values()["curriculum/other/sum_list/share"] == 0.25


@pytest.mark.parametrize("draw", ["band", "adaptive", "signal"])
def test_nothing_is_known_of_a_new_version(draw: str) -> None:
    curriculum = make(draw)
    fresh = shares(curriculum.values())
    see(curriculum, 20, find_max=FAILED, sum_list=MIXED)
    assert shares(curriculum.values()) != pytest.approx(fresh)
    newer = replace(SOURCE, version="newer")
    curriculum.put(newer.key, Share(source=newer, weight=1.0, envs=ENVS))
    curriculum.drop(SOURCE.key)
    assert shares(curriculum.values()) == pytest.approx(fresh)
    see(curriculum, 20, find_max=FAILED)  # groups of the old one, which drains
    assert shares(curriculum.values()) == pytest.approx(fresh)
    assert [pool.key for pool in curriculum.rates.pools] == [newer.key]


def test_another_weight_forgets_nothing() -> None:
    curriculum = make("adaptive")
    see(curriculum, 20, find_max=FAILED, sum_list=MIXED)
    before = curriculum.rates
    curriculum.put(SOURCE.key, Share(source=SOURCE, weight=9.0, envs=ENVS))
    assert curriculum.rates == before


def test_many_environments_are_not_named_one_by_one() -> None:
    envs = tuple(f"env_{number}" for number in range(MAX_NAMED_ENVS + 1))
    share = Share(source=SOURCE, weight=1.0, envs=envs)
    curriculum = Curriculum({SOURCE.key: share}, RolloutSection(), seed=0)
    values = curriculum.values()
    assert values == {
        "curriculum/effective_envs": pytest.approx(len(envs)),
        "curriculum/measured_frac": 0.0,
    }


# -- requeued tasks -----------------------------------------------------------------------------


def test_requeued_tasks_come_first() -> None:
    curriculum = make()
    first = curriculum.next()
    curriculum.requeue(first)
    assert curriculum.next() is first


def test_requeued_tasks_keep_their_order() -> None:
    curriculum = make()
    first, second = curriculum.next(), curriculum.next()
    curriculum.requeue(first)
    curriculum.requeue(second)
    assert [curriculum.next(), curriculum.next()] == [first, second]
