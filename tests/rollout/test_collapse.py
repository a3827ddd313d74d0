import logging
from collections.abc import Mapping

import msgspec
import pytest

from configs.schema import AlarmSection
from rollout.collapse import Collapse
from rollout.metrics import Window, num_repeated
from tests.fakes import make_rollout, make_turn

THREE = AlarmSection(steps=3, entropy_min=0.5)


def play(section: AlarmSection, steps: list[Mapping[str, float]]) -> list[dict[str, float | int]]:
    watch = Collapse(section)
    return [watch.stepped(number, values) for number, values in enumerate(steps, 1)]


def signs(section: AlarmSection, key: str, values: list[float]) -> list[float]:
    return [noted["alarm/signs"] for noted in play(section, [{key: value} for value in values])]


def test_a_reward_below_half_its_best_is_a_collapse(caplog: pytest.LogCaptureFixture) -> None:
    rewards = [0.5, 0.6, 0.7, 0.8, 0.3, 0.0, 0.3, 0.9]
    with caplog.at_level(logging.WARNING):
        noted = play(THREE, [{"reward/all_mean": value} for value in rewards])
    # Means of three: .6, .7, .6, .367, .2, .4; half of the best is .35.
    assert [one["alarm/signs"] for one in noted] == [0, 0, 0, 0, 0, 0, 1, 0]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(
        "COLLAPSE at step 7: the mean reward of 3 steps is 0.200, and was 0.700"
    )
    assert "3 steps ago" in said[0] and "learner.lr" in said[0]
    assert "no sign of collapse any more at step 8" in said[1]


def test_one_bad_step_is_none(caplog: pytest.LogCaptureFixture) -> None:
    assert signs(THREE, "reward/all_mean", [0.8, 0.8, 0.8, 0.1, 0.8]) == [0] * 5
    assert not caplog.records


def test_a_reward_that_never_rose_cannot_fall() -> None:
    assert signs(THREE, "reward/all_mean", [0.0] * 6) == [0] * 6
    assert signs(THREE, "reward/all_mean", [-1.0, -1.0, -1.0, -9.0, -9.0, -9.0]) == [0] * 6


def test_few_effective_samples_and_no_entropy_are_signs_after_so_many_steps() -> None:
    assert signs(THREE, "loss/ess", [0.9, 0.1, 0.1, 0.1, 0.1, 0.3]) == [0, 0, 0, 1, 1, 0]
    assert signs(THREE, "loss/ess", [0.1, 0.1, 0.3, 0.1, 0.1]) == [0] * 5
    assert signs(THREE, "loss/entropy", [0.4, 0.4, 0.4]) == [0, 0, 1]


def test_bounds_can_be_left_out() -> None:
    off = AlarmSection(steps=1, reward_frac=0.0, ess_min=0.0)
    steps = [{"reward/all_mean": 0.9, "loss/ess": 0.0, "loss/entropy": 0.0}]
    steps.append({"reward/all_mean": 0.0, "loss/ess": 0.0, "loss/entropy": 0.0})
    assert [noted["alarm/signs"] for noted in play(off, steps)] == [0, 0]


def test_a_plateau_shows_as_steps_since_the_best() -> None:
    rewards = [0.1, 0.2, 0.3, 0.6, 0.3, 0.2, 0.3]
    noted = play(THREE, [{"reward/all_mean": value} for value in rewards])
    assert "reward/since_best_steps" not in noted[1]
    # Means of three: .2, .367, .4, .367, .267
    assert [one["reward/since_best_steps"] for one in noted[2:]] == [0, 0, 0, 1, 2]
    assert noted[-1]["reward/best_mean"] == pytest.approx(0.4)


def test_a_step_without_a_known_reward_changes_nothing() -> None:
    assert play(THREE, [{}, {"loss/ess": 1.0}]) == [{"alarm/signs": 0}] * 2


def test_repeated_identical_calls_are_counted_within_a_rollout() -> None:
    actions = ["a", "b", "a", "a", "", ""]
    turns = [
        msgspec.structs.replace(make_turn(index), action=action)
        for index, action in enumerate(actions)
    ]
    rollout = msgspec.structs.replace(make_rollout(), turns=turns)
    # The second and third "a"; where nothing was called, nothing was repeated.
    assert num_repeated(rollout) == 2
    other = msgspec.structs.replace(make_rollout(), turns=turns[:2])
    window = Window()
    window.add_scored([rollout, other])
    assert window.values()["rollout/repeated_call_frac"] == 2 / 8
