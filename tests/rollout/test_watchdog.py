"""The watchdog on a clock of the test's own: patience, what counts as progress, what is fruitless."""

import pytest

from rollout.buffer import Group
from rollout.ledger import GroupState
from rollout.watchdog import FRUITLESS_BATCHES, LEARNER_PATIENCE, StallError, Watchdog
from tests.fakes import make_task

STALL_S = 10.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make() -> tuple[Watchdog, Clock]:
    clock = Clock()
    return Watchdog(stall_s=STALL_S, groups_per_step=2, clock=clock), clock


def ended(state: GroupState) -> Group:
    return Group(id="g000000", task=make_task(), size=2, attempt=0, state=state)


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
