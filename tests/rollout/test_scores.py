"""avg@k, pass@k, pass^k and their intervals, against enumeration and simulation."""

import random
from collections.abc import Sequence
from itertools import combinations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout.scores import Score, interval, pass_all, pass_at, score
from rollout.types import Rollout, StopReason
from tests.fakes import make_rollout

QUIET = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def wilson(successes: int, number: int) -> tuple[float, float]:
    """The textbook formula."""
    z, p = 1.96, successes / number
    centre = p + z**2 / (2 * number)
    half = z * ((p * (1 - p) + z**2 / (4 * number)) / number) ** 0.5
    return tuple((centre + sign * half) / (1 + z**2 / number) for sign in (-1, 1))  # type: ignore[return-value]


def episodes(*tasks: Sequence[float | None], env: str = "sum_list") -> list[Rollout]:
    """Episodes of tasks by their rewards; None is a fault."""
    return [
        msgspec.structs.replace(
            make_rollout(
                f"t{number}",
                member,
                reward=reward,
                stop=StopReason.TIMEOUT if reward is None else StopReason.ANSWERED,
            ),
            env=env,
        )
        for number, rewards in enumerate(tasks)
        for member, reward in enumerate(rewards)
    ]


@QUIET
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_the_estimators_are_means_over_every_choice_of_k_samples(
    passes: list[bool], data: st.DataObject
) -> None:
    n, c = len(passes), sum(passes)
    k = data.draw(st.integers(1, n))
    choices = list(combinations(passes, k))
    assert pass_at(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_all(n, c, k) == pytest.approx(sum(map(all, choices)) / len(choices))


@QUIET
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_with_one_sample_the_interval_is_wilsons_over_episodes(rewards: list[float]) -> None:
    found = score(episodes(*[[reward] for reward in rewards]))
    assert (found.low, found.high) == pytest.approx(
        [min(1, max(0, end)) for end in wilson(int(sum(rewards)), len(rewards))]
    )
    assert found.pass_at == found.pass_all == {}


@QUIET
@given(
    st.integers(2, 6).flatmap(
        lambda k: st.lists(
            st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=k, max_size=k),
            min_size=1,
            max_size=20,
        )
    )
)
def test_intervals_hold_their_mean_and_are_never_narrower_than_for_independent_episodes(
    tasks: list[list[float]],
) -> None:
    k = len(tasks[0])
    found = score(episodes(*tasks), samples=k)
    assert found.mean is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    full = found.mean * (1 - found.mean)
    independent = interval([found.mean] * found.count, most=found.count) if full else (0, 0)
    assert found.high - found.low >= independent[1] - independent[0] - 1e-9
    for one in (*found.pass_at.values(), *found.pass_all.values()):
        assert 0 <= one.low <= one.mean <= one.high <= 1 and one.low < one.high
    assert found.pass_at[1].mean == pytest.approx(found.pass_all[1].mean)


def test_samples_that_agree_count_as_one_episode() -> None:
    agreeing = score(episodes(*[[1.0] * 8] * 3, *[[0.0] * 8] * 7), samples=8)
    assert (agreeing.low, agreeing.high) == pytest.approx(wilson(3, 10))
    assert agreeing.count == 80 and agreeing.tasks == 10
    mixed = score(episodes(*[[1.0, 0.0] * 4] * 10), samples=8)
    assert (mixed.low, mixed.high) == pytest.approx(wilson(40, 80))


def test_overlapping_draws_of_samples_are_not_taken_for_independent_ones() -> None:
    """Each task has pass@2 = 1/2 of four samples: two disjoint draws of a task, not four."""
    found = score(episodes(*[[1.0, 0.0, 0.0, 0.0]] * 10), samples=4).pass_at[2]
    assert found.mean == 0.5
    assert (found.low, found.high) == pytest.approx(wilson(10, 20))


def test_an_environment_has_the_mean_of_its_tasks_however_many_samples_they_kept() -> None:
    one = episodes([1.0, 0.0, 0.0, 0.0], [1.0, None, None, None], env="a")
    other = [msgspec.structs.replace(x, group_id="u") for x in episodes([0.5] * 4, env="b")]
    assert score([*one, *other], samples=4).by_env == {"a": 0.625, "b": 0.5}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """20 tasks of unequal difficulty (uniform), 4 samples each: mean 1/2, pass@4 = 4/5."""
    rng = random.Random(0)
    covered = {"mean": 0, "pass@2": 0, "pass@4": 0}
    for _ in range(1000):
        chances = [rng.random() for _ in range(20)]
        found = score(
            episodes(*[[float(rng.random() < p) for _ in range(4)] for p in chances]), samples=4
        )
        assert found.low is not None and found.high is not None
        covered["mean"] += found.low <= 1 / 2 <= found.high
        covered["pass@2"] += found.pass_at[2].low <= 2 / 3 <= found.pass_at[2].high
        covered["pass@4"] += found.pass_at[4].low <= 4 / 5 <= found.pass_at[4].high
    assert all(920 <= times <= 980 for times in covered.values()), covered


def test_faults_are_counted_apart_and_leave_the_task_what_it_has() -> None:
    found = score(episodes([1.0, None, 0.0, 1.0], [None] * 4, [0.0] * 4), samples=4)
    assert (found.count, found.faults, found.tasks) == (7, 5, 2)
    assert found.mean == pytest.approx((2 / 3 + 0) / 2)
    assert found.pass_at[2].mean == pytest.approx((1.0 + 0) / 2)
    assert [found.pass_at[j].tasks for j in (1, 2, 4)] == [2, 2, 1]
    assert score(episodes([None, None]), samples=2) == Score(
        mean=None, low=None, high=None, count=0, faults=2, by_env={}, samples=2
    )


def test_partial_credit_counts_in_the_mean_only_and_other_scales_have_an_interval() -> None:
    partial = score(episodes([0.5, 0.5], [1.0, 0.5]), samples=2)
    assert (partial.mean, partial.pass_at[2].mean) == (0.625, 0.5)
    other = score(episodes([-3.0], [5.0], [4.0]))
    assert other.mean == 2 and other.low is not None and other.low < -1


@pytest.mark.parametrize(("samples", "sizes"), [(1, []), (2, [1, 2]), (6, [1, 2, 4, 6])])
def test_pass_at_is_given_for_powers_of_two_and_k(samples: int, sizes: list[int]) -> None:
    found = score(episodes([0.0] * samples), samples=samples)
    assert list(found.pass_at) == list(found.pass_all) == sizes


def test_a_score_survives_summary_and_checkpoint() -> None:
    found = score(episodes([0.0, 1.0], [1.0, 1.0]), samples=2)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Score) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Score) == found
