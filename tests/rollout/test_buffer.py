"""The replay queue: slots, order, the lag bound, and every way a group may end."""

from collections import Counter
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envpool.task import PoolKey
from rollout.buffer import Ended, Group, ReplayQueue
from rollout.ledger import GroupState, Ledger
from rollout.types import LagError, StopReason
from tests.fakes import make_rollout, make_task, make_turn_done


class Harness:
    """A queue, its ledger, and the groups that ended."""

    def __init__(
        self, *, per_step: int = 2, max_lag: int = 2, every: int = 1, size: int = 2
    ) -> None:
        self.transitions: list[msgspec.Struct] = []
        self.ended: list[Ended] = []
        self.scored: list[Group] = []
        self.ledger = Ledger(sink=self.transitions.append, clock=lambda: 0.0)
        self.queue = ReplayQueue(
            ledger=self.ledger,
            groups_per_step=per_step,
            max_lag=max_lag,
            weights_every=every,
            group_size=size,
            min_members=max(1, size - 1),
            on_scored=lambda group, has_signal: self.scored.append(group),
            on_end=self.ended.append,
        )

    def start(self, version: int = 0, *, pool_version: str = "v") -> Group:
        group = self.queue.create(make_task(pool_version=pool_version))
        self.queue.start(group, actor="actor-0", version=version)
        return group

    def finish(self, group: Group, *rewards: float, version: int | None = None) -> None:
        rewards = rewards or (0.0, 1.0)
        used = group.version if version is None else version
        for member, reward in enumerate(rewards):
            self.queue.finish(make_rollout(group.id, member, reward=reward, versions=(used,)))

    def queued(self, version: int = 0) -> Group:
        group = self.start(version)
        self.finish(group)
        return group

    def train(self, step: int) -> list[Group]:
        batch = self.queue.take(step)
        assert batch is not None
        self.queue.trained(batch, step=step)
        return batch

    def expect_held(self, groups: list[Group]) -> None:
        """Exactly these hold slots, each for its own version of its pool."""
        held = Counter(group.task.pool_key for group in groups)
        assert self.queue.slots_held == held.total() <= self.queue.slots
        for key in (PoolKey("basics", "v"), PoolKey("basics", "w")):
            assert self.queue.slots_held_by(key) == held[key]


def test_slots_are_held_until_the_engines_hold_what_was_produced() -> None:
    h = Harness(per_step=2, max_lag=1)
    for _ in range(4):
        h.queued()
    assert h.queue.slots == 4 and h.queue.free_slots == 0
    h.train(1)
    assert h.queue.free_slots == 0
    h.queue.engines_hold(0)
    assert h.queue.free_slots == 0
    h.queue.engines_hold(1)
    assert h.queue.free_slots == 2


def test_slots_of_several_steps_are_released_by_the_newest_version() -> None:
    h = Harness(per_step=1, max_lag=2)
    for _ in range(3):
        h.queued()
    h.train(1)
    h.train(2)
    h.queue.engines_hold(2)
    assert h.queue.free_slots == 2


def test_with_every_2_a_slot_waits_for_the_version_its_step_goes_into() -> None:
    h = Harness(per_step=1, max_lag=2, every=2)
    for _ in range(3):
        h.queued()
    h.train(1)
    h.train(2)  # steps 1 and 2 both go into version 1
    assert h.queue.free_slots == 0
    h.queue.engines_hold(1)
    assert h.queue.free_slots == 2


@pytest.mark.parametrize("rewards", [(0.0, 0.0), (1.0, 1.0)])
def test_group_without_signal_is_filtered_and_releases_its_slot(rewards: tuple[float, ...]) -> None:
    h = Harness()
    group = h.start()
    held = h.queue.free_slots
    h.finish(group, *rewards)
    assert group.state is GroupState.FILTERED
    assert h.queue.free_slots == held + 1


def test_faulted_member_is_played_once_more_then_counts_as_missing() -> None:
    h = Harness(size=3)
    group = h.start()
    fault = make_rollout(group.id, 0, stop=StopReason.TIMEOUT)
    assert h.queue.finish(fault) is True
    assert h.queue.finish(make_rollout(group.id, 0, stop=StopReason.TIMEOUT, attempt=1)) is False
    h.queue.finish(make_rollout(group.id, 1, reward=0.0))
    h.queue.finish(make_rollout(group.id, 2, reward=1.0))
    assert group.state is GroupState.QUEUED
    assert [rollout.member for rollout in group.trainable] == [1, 2]
    assert len(group.rollouts) == 4


def test_group_with_too_few_verdicts_fails_and_releases_its_slot() -> None:
    h = Harness(size=3)
    group = h.start()
    for member in (0, 1):
        h.queue.finish(make_rollout(group.id, member, stop=StopReason.ENV_ERROR, attempt=1))
    h.queue.finish(make_rollout(group.id, 2))
    assert group.state is GroupState.FAILED
    assert h.queue.free_slots == h.queue.slots


def test_faulted_rollout_is_never_taken() -> None:
    h = Harness(size=3, per_step=1)
    group = h.start()
    h.queue.finish(make_rollout(group.id, 0, stop=StopReason.ENV_ERROR, attempt=1))
    h.finish(group, 0.5, 0.0, 1.0)  # member 0 is said twice: the first end stands
    (taken,) = h.train(1)
    assert [rollout.reward for rollout in taken.trainable] == [0.0, 1.0]


def test_oldest_queued_groups_go_first() -> None:
    h = Harness(per_step=1, max_lag=2)
    young, old = h.queued(version=0), h.start(version=0)
    h.train(1)  # young
    h.queue.engines_hold(1)
    new = h.queued(version=1)
    h.finish(old)
    assert h.train(2) == [old]
    assert h.train(3) == [new]
    assert young.state is GroupState.TRAINED


def test_step_waits_when_overtaking_would_make_older_work_late() -> None:
    h = Harness(per_step=1, max_lag=1)
    slow, fast = h.start(version=0), h.queued(version=0)
    assert h.train(1) == [fast]  # slow can still be trained at step 2
    h.queue.engines_hold(1)
    newer = h.queued(version=1)
    assert h.queue.take(2) is None  # taking `newer` now would leave `slow` for step 3: too late
    h.finish(slow)
    assert h.train(2) == [slow]
    h.queue.engines_hold(2)
    assert h.train(3) == [newer]


def test_max_lag_0_is_synchronous() -> None:
    h = Harness(per_step=2, max_lag=0)
    first, second = h.queued(), h.start()
    assert h.queue.free_slots == 0
    assert h.queue.take(1) is None
    h.finish(second)
    assert h.train(1) == [first, second]
    assert h.queue.free_slots == 0
    h.queue.engines_hold(1)
    assert h.queue.free_slots == 2


def test_queued_group_past_the_bound_is_stale_and_its_task_asked_for_again() -> None:
    h = Harness(per_step=1, max_lag=1)
    late = h.start(version=1)
    h.finish(late, version=1)
    late.version = -2  # older than any slot would allow, as after a resume with other settings
    h.queued(version=0)
    h.queue.take(2 - 1)
    assert late.state is GroupState.STALE
    assert h.ended[-1].retry


def test_running_group_that_can_no_longer_be_used_is_cancelled() -> None:
    h = Harness(per_step=1, max_lag=0)
    group = h.start(version=0)
    group.version = -1
    h.queue.take(1)
    assert group.state is GroupState.CANCELLED
    assert h.ended[-1].retry


def test_lag_past_the_bound_raises() -> None:
    h = Harness(max_lag=2)
    assert h.queue.lag(make_rollout(versions=(3, 5)), step=6) == 2
    with pytest.raises(LagError, match="lag 3"):
        h.queue.lag(make_rollout(versions=(2, 5)), step=6)
    with pytest.raises(LagError, match="lag -1"):
        h.queue.lag(make_rollout(versions=(6,)), step=6)


def test_cancel_all_ends_every_live_group_once() -> None:
    h = Harness()
    running, queued = h.start(), h.queued()
    pending = h.queue.create(make_task())
    h.queue.note_turn(make_turn_done(running.id, 1))
    h.queue.cancel_all()
    assert {g.state for g in (running, queued, pending)} == {GroupState.CANCELLED}
    assert h.ledger.live == 0 and h.ledger[GroupState.CANCELLED] == 3
    rows = running.cancelled_members()
    assert [row.member for row in rows] == [0, 1]
    assert [len(row.turns) for row in rows] == [0, 1]
    h.queue.finish(make_rollout(running.id, 0))  # said too late: ignored
    assert h.ledger[GroupState.CANCELLED] == 3


def test_every_transition_reaches_the_sink() -> None:
    h = Harness(per_step=1)
    group = h.queued()
    h.train(1)
    seen = [(t.old, t.new) for t in h.transitions]  # type: ignore[attr-defined]
    assert group.state is GroupState.TRAINED
    assert seen == [
        (None, "pending"),
        ("pending", "running"),
        ("running", "scored"),
        ("scored", "queued"),
        ("queued", "trained"),
    ]


def test_impossible_transition_asserts() -> None:
    ledger = Ledger(sink=lambda _: None, clock=lambda: 0.0)
    ledger.create("g")
    with pytest.raises(AssertionError, match="pending -> trained"):
        ledger.move("g", GroupState.PENDING, GroupState.TRAINED)


def brute_force_feasible(
    versions: list[int], per_step: int, max_lag: int, every: int, after: int
) -> bool:
    """The definition, word by word: for every x, few enough are of version <= x."""
    return all(
        sum(version <= x for version in versions)
        <= max(0, every * (x + max_lag + 1) - after) * per_step
        for x in range(max(versions, default=0) + 1)
    )


@given(
    versions=st.lists(st.integers(0, 6), max_size=12),
    per_step=st.integers(1, 4),
    max_lag=st.integers(0, 3),
    every=st.integers(1, 3),
    after=st.integers(0, 12),
)
def test_feasibility_equals_its_definition(
    versions: list[int], per_step: int, max_lag: int, every: int, after: int
) -> None:
    h = Harness(per_step=per_step, max_lag=max_lag, every=every)
    expected = brute_force_feasible(versions, per_step, max_lag, every, after)
    assert h.queue.is_feasible(versions, after_step=after) is expected


@settings(max_examples=150, deadline=None)
@given(data=st.data(), per_step=st.integers(1, 3), max_lag=st.integers(0, 3))
def test_any_order_of_events_keeps_the_bound_and_never_stalls(
    data: st.DataObject, per_step: int, max_lag: int
) -> None:
    """Random interleavings of admission, completion, training and weight loading.

    What slots admit is always trained in time: nothing is ever stale. When everything that runs has
    finished, the next step can always be taken or more can be admitted. Two versions of a pool share
    the queue, and what each holds is known.
    """
    h = Harness(per_step=per_step, max_lag=max_lag)
    step, published, engine = 1, 0, 0
    running: list[Group] = []
    trained: list[tuple[int, Group]] = []

    def admit() -> bool:
        if h.queue.free_slots <= 0:
            return False
        running.append(h.start(engine, pool_version=data.draw(st.sampled_from("vw"))))
        return True

    def end() -> bool:
        if not running:
            return False
        group = running.pop(data.draw(st.integers(0, len(running) - 1)))
        sampled = data.draw(st.integers(group.version, engine))
        has_signal = data.draw(st.integers(0, 9)) >= 3
        h.finish(group, 0.0, 1.0 if has_signal else 0.0, version=sampled)
        return True

    def train() -> bool:
        nonlocal step, published
        batch = h.queue.take(step)
        if batch is None:
            return False
        for group in batch:
            for rollout in group.trainable:
                h.queue.lag(rollout, step)
        h.queue.trained(batch, step=step)
        trained.extend((step, group) for group in batch)
        step, published = step + 1, step
        return True

    def load() -> bool:
        nonlocal engine
        is_news = engine < published
        engine = published
        h.queue.engines_hold(engine)
        return is_news

    actions: list[Callable[[], bool]] = [admit, end, train, load]
    for _ in range(data.draw(st.integers(0, 60))):
        data.draw(st.sampled_from(actions))()
        assert h.ledger.is_balanced
        waiting = [group for produced, group in trained if produced > engine]
        h.expect_held([*running, *h.queue.live(GroupState.QUEUED), *waiting])
    assert h.ledger[GroupState.STALE] == h.ledger[GroupState.CANCELLED] == 0
    while end():
        pass
    load()
    assert train() or admit(), "the run is stuck"


def test_a_group_is_as_old_as_its_oldest_token() -> None:
    h = Harness(size=2)
    group = h.start(version=0)
    h.queue.finish(make_rollout(group.id, 0, reward=0.0, versions=(3, 4)))
    h.queue.finish(make_rollout(group.id, 1, reward=1.0, versions=(1, 4)))
    assert group.version == 1


def test_with_every_2_the_slot_of_an_unpublished_step_is_not_released_early() -> None:
    h = Harness(per_step=1, max_lag=2, every=2)
    for _ in range(3):
        h.queued()
    h.train(1)
    h.queue.engines_hold(0)
    assert h.queue.free_slots == 0


def test_a_cancelled_member_that_was_retried_has_the_turns_of_its_last_attempt() -> None:
    h = Harness(size=2)
    group = h.start()
    h.queue.note_turn(make_turn_done(group.id, 0))
    h.queue.finish(make_rollout(group.id, 0, stop=StopReason.TIMEOUT))
    h.queue.note_turn(make_turn_done(group.id, 0, attempt=1))
    h.queue.cancel_all()
    (row,) = [row for row in group.cancelled_members() if row.member == 0]
    assert (row.attempt, len(row.turns)) == (1, 1)
