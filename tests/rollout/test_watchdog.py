"""The watchdog on a clock of the test's own: patience, what counts as progress, what is fruitless."""

import logging

import pytest

from configs.schema import ControlSection, RolloutSection, RunConfig
from rollout.buffer import Group
from rollout.ledger import GroupState
from rollout.types import StopReason
from rollout.watchdog import (
    FRUITLESS_BATCHES,
    LEARNER_PATIENCE,
    SAY_EVERY_S,
    StallError,
    Watchdog,
)
from tests.fakes import make_rollout, make_task

STALL_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make() -> tuple[Watchdog, Clock]:
    clock = Clock()
    config = RunConfig(
        control=ControlSection(stall_s=STALL_S),
        rollout=RolloutSection(groups_per_step=2, max_context_tokens=77),
    )
    return Watchdog(config, clock=clock), clock


def ended(state: GroupState, *stops: StopReason) -> Group:
    """A group that taught nothing, with a rollout for each stop reason, of reward 0."""
    group = Group(id="g000000", task=make_task(), size=2, attempt=0, state=state)
    for member, stop in enumerate(stops):
        group.done[member] = make_rollout(member=member, stop=stop, reward=0.0)
    return group


def why(*groups: Group) -> str:
    """What the run ends with when it had nothing but these, over and over."""
    watchdog, _ = make()
    limit = FRUITLESS_BATCHES * 2
    for index in range(limit - 1):
        watchdog.group_ended(groups[index % len(groups)])
    with pytest.raises(StallError) as raised:
        watchdog.group_ended(groups[(limit - 1) % len(groups)])
    return str(raised.value)


def test_it_waits_as_long_as_it_was_told_and_no_longer() -> None:
    watchdog, clock = make()
    clock.now_s += STALL_S
    watchdog.check(lambda: "why")
    clock.now_s += 0.1
    with pytest.raises(StallError, match="nothing happened for 10 s; why"):
        watchdog.check(lambda: "why")


@pytest.mark.parametrize("what", ["something_happened", "step_trained"])
def test_progress_starts_the_wait_anew(what: str) -> None:
    watchdog, clock = make()
    clock.now_s += STALL_S
    getattr(watchdog, what)()
    clock.now_s += STALL_S
    watchdog.check(str)


def test_a_learner_at_work_gets_more_time_but_not_for_ever() -> None:
    watchdog, clock = make()
    with watchdog.learner_at_work():
        clock.now_s += STALL_S * LEARNER_PATIENCE
        watchdog.check(str)
        clock.now_s += 0.1
        with pytest.raises(StallError):
            watchdog.check(str)


def test_after_the_learner_the_usual_patience_counts_from_its_end() -> None:
    watchdog, clock = make()
    with watchdog.learner_at_work():
        clock.now_s += STALL_S * 2
    clock.now_s += STALL_S
    watchdog.check(str)
    clock.now_s += 0.1
    with pytest.raises(StallError):
        watchdog.check(str)


def test_patience_ends_with_a_learner_that_raised() -> None:
    watchdog, clock = make()
    with pytest.raises(KeyError), watchdog.learner_at_work():
        raise KeyError
    clock.now_s += STALL_S + 0.1
    with pytest.raises(StallError):
        watchdog.check(str)


@pytest.mark.parametrize("state", [GroupState.FILTERED, GroupState.FAILED])
def test_too_many_groups_in_a_row_that_teach_nothing_end_the_run(state: GroupState) -> None:
    watchdog, _ = make()
    limit = FRUITLESS_BATCHES * 2
    for _ in range(limit - 1):
        watchdog.group_ended(ended(state))
    with pytest.raises(StallError, match=f"{limit} groups in a row"):
        watchdog.group_ended(ended(state))


@pytest.mark.parametrize("what", ["signal_seen", "step_trained"])
def test_one_that_teaches_something_starts_the_count_anew(what: str) -> None:
    watchdog, _ = make()
    limit = FRUITLESS_BATCHES * 2
    for _ in range(limit - 1):
        watchdog.group_ended(ended(GroupState.FILTERED))
    getattr(watchdog, what)()
    for _ in range(limit - 1):
        watchdog.group_ended(ended(GroupState.FILTERED))


def test_other_ends_are_no_sign_of_anything() -> None:
    watchdog, _ = make()
    for _ in range(FRUITLESS_BATCHES * 4):
        watchdog.group_ended(ended(GroupState.CANCELLED))
        watchdog.group_ended(ended(GroupState.TRAINED))


def test_rollouts_that_did_not_fit_name_the_setting() -> None:
    full, answered = StopReason.CONTEXT_FULL, StopReason.ANSWERED
    text = why(
        ended(GroupState.FILTERED, full, full),
        ended(GroupState.FILTERED, full, answered),
    )
    assert "100 had equal rewards: 0 (200 times)" in text
    assert "75 % context_full, 25 % answered" in text
    assert "rollout.max_context_tokens=77: raise it" in text
    assert "failed" not in text


def test_answers_that_are_all_wrong_are_the_tasks_fault_and_nothing_empty_is_said() -> None:
    text = why(ended(GroupState.FILTERED, StopReason.ANSWERED, StopReason.ANSWERED))
    assert text.endswith("as 100 % answered; the tasks are too hard or too easy for the policy")
    assert "max_context_tokens" not in text
    assert "{" not in why(ended(GroupState.FILTERED))


def test_groups_that_fail_end_with_the_last_fault() -> None:
    text = why(ended(GroupState.FAILED, StopReason.ENV_ERROR, StopReason.ENV_ERROR))
    assert "100 failed; their rollouts ended as 100 % env_error" in text
    assert text.endswith("the last fault: it broke")
    assert "equal rewards" not in text and "{" not in text


def test_without_a_step_it_says_now_and_then_what_became_of_the_groups(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    watchdog, clock = make()

    def pass_s(seconds: float) -> list[str]:
        caplog.clear()
        clock.now_s += seconds
        watchdog.something_happened()
        watchdog.check(str)
        return caplog.messages

    assert pass_s(10 * SAY_EVERY_S) == []  # nothing ended: an evaluation, or the first groups
    watchdog.group_ended(ended(GroupState.FILTERED, StopReason.CONTEXT_FULL))
    watchdog.group_ended(ended(GroupState.FAILED))
    assert pass_s(SAY_EVERY_S - 1) == []
    (line,) = pass_s(1)
    assert "no step for 20 s: 1 groups filtered (equal rewards), 1 failed" in line
    assert "100 % context_full" in line
    assert pass_s(SAY_EVERY_S - 1) == []
    watchdog.group_ended(ended(GroupState.FILTERED))
    assert "no step for 40 s: 2 groups filtered" in pass_s(1)[0]
    with watchdog.learner_at_work():
        assert pass_s(SAY_EVERY_S) == []
    watchdog.step_trained()
    assert pass_s(10 * SAY_EVERY_S) == []
    watchdog.group_ended(ended(GroupState.FILTERED))
    assert "1 groups filtered (equal rewards), 0 failed" in pass_s(SAY_EVERY_S)[0]
    watchdog.training_ended()
    assert pass_s(SAY_EVERY_S) == []
