"""The replay queue: groups from draw to gradient, slots, and the hard bound on lag.

Owns staleness. Pure bookkeeping: no clock reads, no awaits, no I/O; the coordinator calls it and
wakes whoever waits.

Symbols: `S` max_lag, `P` groups per step, `n` steps per published version, `k` a 1-based optimizer
step. Step k computes its gradient at the version whose place is `(k - 1) // n` (`rollout.lineage`: in
a run never resumed, a version is its own place). A group whose oldest trained token is of place x can
be trained at the steps `k <= n * (x + S + 1)`.

- *Slots* pace admission: `(S + 1) * P`, held from running until the group ends; a trained group holds
  its slot until every live engine has weights at least as new as those it produced. So whatever is
  admitted can still be trained in time.
- *Order*: a step may overtake older work only while everything left can still be trained in time
  (`is_feasible`); oldest first among what is queued.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from envpool.task import PoolKey, Task
from rollout.ledger import GroupState, Ledger
from rollout.lineage import Lineage
from rollout.types import LagError, Rollout, StopReason, TrainBatch, TrainGroup, TurnDone

# A faulted member is played again this many times.
MEMBER_RETRIES = 1


@dataclass(slots=True, kw_only=True)
class Group:
    """Rollouts of one task. `version` is a lower bound on what sampled it while it runs."""

    id: str
    task: Task
    size: int
    attempt: int
    state: GroupState = GroupState.PENDING
    version: int = 0
    actor: str = ""
    faults: list[Rollout] = field(default_factory=list)
    done: dict[int, Rollout] = field(default_factory=dict)
    journal: dict[int, list[TurnDone]] = field(default_factory=dict)
    """The completed turns of each member that plays."""
    queued_order: int = 0

    @property
    def rollouts(self) -> list[Rollout]:
        """Every rollout played for it: the final one of each member, then the retried faults."""
        return [*self.done.values(), *self.faults]

    @property
    def trainable(self) -> list[Rollout]:
        """The members that have a verdict, in member order."""
        return [self.done[m] for m in sorted(self.done) if self.done[m].reward is not None]

    def to_train(self) -> TrainGroup:
        """What the learner gets of it."""
        return TrainGroup(group_id=self.id, pool=self.task.pool, rollouts=self.trainable)

    def cancelled_members(self) -> list[Rollout]:
        """A record for each member that has not ended, with the turns it had."""
        return [
            Rollout(
                group_id=self.id,
                member=member,
                attempt=sum(fault.member == member for fault in self.faults),
                task_id=self.task.id,
                pool=self.task.pool,
                pool_version=self.task.pool_version,
                env=self.task.env,
                seed=self.task.seed,
                stop=StopReason.CANCELLED,
                reward=None,
                rows=[],
                turns=[done.turn for done in self.journal.get(member, [])],
                actor=self.actor,
            )
            for member in range(self.size)
            if member not in self.done
        ]


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A live group as a checkpoint keeps it."""

    id: str
    task: Task
    size: int
    attempt: int
    version: int
    done: list[Rollout]
    faults: list[Rollout]


@dataclass(slots=True, kw_only=True, frozen=True)
class Ended:
    """A group that reached an end state, for the log; `retry` says its task should be drawn anew."""

    group: Group
    retry: bool = False


class ReplayQueue:
    """Groups by state, the slots they hold, and what the next step may train on."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        groups_per_step: int,
        max_lag: int,
        weights_every: int,
        group_size: int,
        min_members: int,
        on_scored: Callable[[Group, bool | None], None],
        on_end: Callable[[Ended], None],
        lineage: Lineage | None = None,
    ) -> None:
        self.lineage = lineage or Lineage()
        self._ledger = ledger
        self._per_step = groups_per_step
        self._max_lag = max_lag
        self._every = weights_every
        self._group_size = group_size
        self._min_members = min_members
        self._on_scored = on_scored
        self._on_end = on_end
        self._groups: dict[str, Group] = {}
        self._in_batch: dict[str, Group] = {}
        self._held: Counter[PoolKey] = Counter()
        # Trained groups that still hold a slot, by the version they went into and their pool.
        self._awaiting_engines: Counter[tuple[int, PoolKey]] = Counter()
        self._steps_done = 0
        self.next_id = 0
        """Groups made so far."""
        self._queued_order = 0

    @property
    def slots(self) -> int:
        return (self._max_lag + 1) * self._per_step

    @property
    def slots_held(self) -> int:
        return self._held.total()

    def slots_held_by(self, pool: PoolKey) -> int:
        """Slots held by groups of one version of a pool; at 0 none of it is left in the queue."""
        return self._held[pool]

    @property
    def free_slots(self) -> int:
        return self.slots - self.slots_held

    def live(self, state: GroupState) -> list[Group]:
        """The groups in one live state."""
        return [group for group in self._groups.values() if group.state is state]

    def group(self, group_id: str) -> Group | None:
        """A live group by its id."""
        return self._groups.get(group_id)

    def num_live(self, pool: PoolKey) -> int:
        """Groups of this version of a pool that have not ended."""
        live = chain(self._groups.values(), self._in_batch.values())
        return sum(group.task.pool_key == pool for group in live)

    def missing(self) -> str:
        """Who holds up the oldest running groups, in words."""
        running = sorted(self.live(GroupState.RUNNING), key=lambda group: group.version)[:8]
        return (
            "; ".join(
                f"{group.id} on {group.actor} lacks members "
                f"{[m for m in range(group.size) if m not in group.done]}"
                for group in running
            )
            or "none"
        )

    def gradient_version(self, step: int) -> int:
        """The version at which 1-based `step` computes its gradient."""
        return self.lineage.version((step - 1) // self._every)

    # -- resuming -----------------------------------------------------------------------------

    def records(self, state: GroupState) -> list[GroupRecord]:
        """The groups in `RUNNING` or `QUEUED`, for a checkpoint, in the order they got there."""
        groups = sorted(self.live(state), key=lambda group: (group.queued_order, group.id))
        return [
            GroupRecord(
                id=group.id,
                task=group.task,
                size=group.size,
                attempt=group.attempt,
                version=group.version,
                done=list(group.done.values()),
                faults=group.faults,
            )
            for group in groups
        ]

    def restore(self, records: Iterable[GroupRecord], state: GroupState) -> list[Group]:
        """Take groups back in as a checkpoint had them; the ledger must count them already."""
        groups = []
        for record in records:
            group = Group(
                id=record.id,
                task=record.task,
                size=record.size,
                attempt=record.attempt,
                state=state,
                version=record.version,
                faults=list(record.faults),
                done={rollout.member: rollout for rollout in record.done},
            )
            if state is GroupState.QUEUED:
                self._queued_order += 1
                group.queued_order = self._queued_order
            self._groups[group.id] = group
            self._held[group.task.pool_key] += 1
            groups.append(group)
        return groups

    def resume(self, *, next_id: int, steps_done: int) -> None:
        """Go on numbering groups and steps."""
        self.next_id, self._steps_done = next_id, steps_done

    def drop_surplus(self) -> None:
        """End as stale what is queued and can no longer be trained in time, oldest first.

        There is none unless groups per step or the bound were lowered: slots saw to it that all of
        it could. Without this the step would wait for ever rather than overtake it.
        """
        kept: list[int] = []
        for group in self._oldest_first():
            if self.is_feasible([*kept, group.version], after_step=self._steps_done):
                kept.append(group.version)
            else:
                self._end(group, GroupState.STALE, retry=True)

    # -- from draw to score -------------------------------------------------------------------

    def create(self, task: Task, *, attempt: int = 0) -> Group:
        """Make a pending group for `task`."""
        group = Group(id=f"g{self.next_id:06d}", task=task, size=self._group_size, attempt=attempt)
        self.next_id += 1
        self._groups[group.id] = group
        self._ledger.create(group.id)
        return group

    def start(self, group: Group, *, actor: str, version: int) -> None:
        """Give a pending group a slot on `actor`, whose engine holds at least `version`."""
        assert self.free_slots > 0, f"group {group.id} started without a free slot"
        group.actor = actor
        group.version = version
        self._held[group.task.pool_key] += 1
        self._move(group, GroupState.RUNNING)

    def note_turn(self, done: TurnDone) -> None:
        """Journal a completed turn of a running member."""
        group = self._groups.get(done.group_id)
        if group is not None and group.state is GroupState.RUNNING:
            group.journal.setdefault(done.member, []).append(done)

    def finish(self, rollout: Rollout) -> bool:
        """Record the end of a member's attempt; True asks to play the member once more."""
        group = self._groups.get(rollout.group_id)
        if group is None or group.state is not GroupState.RUNNING:
            return False  # it ended meanwhile; its rows are written
        if rollout.member in group.done:
            return False  # said twice
        group.journal.pop(rollout.member, None)
        if rollout.stop.is_fault and rollout.attempt < MEMBER_RETRIES:
            group.faults.append(rollout)
            return True
        group.done[rollout.member] = rollout
        if len(group.done) == group.size:
            self._score(group)
        return False

    def _score(self, group: Group) -> None:
        trainable = group.trainable
        is_enough = len(trainable) >= self._min_members
        has_signal = len({rollout.reward for rollout in trainable}) > 1
        self._on_scored(group, has_signal if is_enough else None)
        if not is_enough:
            self._end(group, GroupState.FAILED)
            return
        self._move(group, GroupState.SCORED)
        versions = [v for r in trainable if (v := r.oldest_version) is not None]
        group.version = min(versions, default=group.version)
        if not has_signal:
            self._end(group, GroupState.FILTERED)
            return
        self._queued_order += 1
        group.queued_order = self._queued_order
        self._move(group, GroupState.QUEUED)

    # -- from queue to gradient ---------------------------------------------------------------

    def take(self, step: int) -> list[Group] | None:
        """The groups for `step`, oldest first, or None while it must wait.

        Ends as stale what is too old for this step, and as cancelled what runs in vain.
        """
        assert step == self._steps_done + 1, f"step {step} after {self._steps_done}"
        self._drop_late(step)
        batch = self._oldest_first()[: self._per_step]
        if len(batch) < self._per_step:
            return None
        chosen = {group.id for group in batch}
        left = [
            group.version
            for group in self._groups.values()
            if group.id not in chosen and group.state is not GroupState.PENDING
        ]
        if not self.is_feasible(left, after_step=step):
            return None
        for group in batch:
            del self._groups[group.id]
            self._in_batch[group.id] = group
        return batch

    def _oldest_first(self) -> list[Group]:
        """What is queued, in the order in which it is trained on."""
        return sorted(
            self.live(GroupState.QUEUED), key=lambda group: (group.version, group.queued_order)
        )

    def is_feasible(self, versions: Iterable[int], *, after_step: int) -> bool:
        """Whether groups whose oldest tokens are of `versions` can all be trained in time.

        Oldest first, P a step: the i-th of them (0-based) is trained i // P + 1 steps from now at the
        earliest, which must not be later than the last step its version allows. The same as: for
        every x, at most `(n * (x + S + 1) - k) * P` of them are of version <= x.
        """
        return all(
            after_step + index // self._per_step + 1 <= self._last_step(version)
            for index, version in enumerate(sorted(versions))
        )

    def _last_step(self, version: int) -> int:
        return self._every * (self.lineage.place(version) + self._max_lag + 1)

    def _drop_late(self, step: int) -> None:
        for group in list(self._groups.values()):
            if group.state is GroupState.PENDING or self._last_step(group.version) >= step:
                continue
            late = GroupState.STALE if group.state is GroupState.QUEUED else GroupState.CANCELLED
            self._end(group, late, retry=True)

    def lag(self, rollout: Rollout, step: int) -> int:
        """Lag of its oldest trained token at `step`; raises LagError past the bound."""
        version = self.gradient_version(step)
        oldest = rollout.oldest_version
        lag = 0 if oldest is None else self.lineage.lag(oldest, at=version)
        if not 0 <= lag <= self._max_lag:
            raise LagError(
                f"rollout {rollout.group_id}/{rollout.member} has lag {lag} at step {step} "
                f"(version {version}), the bound is {self._max_lag}"
            )
        return lag

    def train_batch(self, batch: Iterable[Group], *, step: int, is_last: bool) -> TrainBatch:
        """The learner's orders for `step`; raises LagError past the bound.

        The last step of a run always publishes.
        """
        groups = list(batch)
        for group in groups:
            for rollout in group.trainable:
                self.lag(rollout, step)
        version = self.gradient_version(step)
        publishes = is_last or step % self._every == 0
        return TrainBatch(
            step=step,
            version=version,
            publish_version=version + 1 if publishes else None,
            groups=[group.to_train() for group in groups],
            max_lag=self._max_lag,
            lineage=self.lineage,
        )

    def trained(self, batch: Iterable[Group], *, step: int) -> None:
        """End a batch as trained; its slots stay held until the engines hold what it produced."""
        self._steps_done = step
        produced = self.lineage.version(-(-step // self._every))
        for group in batch:
            del self._in_batch[group.id]
            self._end_taken(group, GroupState.TRAINED)
            self._awaiting_engines[produced, group.task.pool_key] += 1

    def engines_hold(self, version: int) -> None:
        """Every live engine holds `version` or newer: release the slots that waited for it."""
        for produced, pool in list(self._awaiting_engines):
            if produced <= version:
                self._release(pool, self._awaiting_engines.pop((produced, pool)))

    # -- ends ---------------------------------------------------------------------------------

    def cancel(self, group: Group) -> None:
        """End one live group."""
        self._end(group, GroupState.CANCELLED)

    def cancel_all(self) -> None:
        """End every live group, as the run does when it stops."""
        for group in [*self._groups.values(), *self._in_batch.values()]:
            self._groups.pop(group.id, None)
            self._in_batch.pop(group.id, None)
            self._end_taken(group, GroupState.CANCELLED)

    def _end(self, group: Group, state: GroupState, *, retry: bool = False) -> None:
        del self._groups[group.id]
        self._end_taken(group, state, retry=retry)

    def _end_taken(self, group: Group, state: GroupState, *, retry: bool = False) -> None:
        if group.state is not GroupState.PENDING and state is not GroupState.TRAINED:
            self._release(group.task.pool_key, 1)
        self._move(group, state)
        self._on_end(Ended(group=group, retry=retry))

    def _release(self, pool: PoolKey, count: int) -> None:
        self._held[pool] -= count
        if not self._held[pool]:
            del self._held[pool]

    def _move(self, group: Group, state: GroupState) -> None:
        old, group.state = group.state, state
        self._ledger.move(group.id, old, state)
