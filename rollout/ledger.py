"""The states of a group, which may follow which, and the counts that must balance.

Every transition goes to an event sink, so that the counts can be recomputed from the files of a run
(`rollout/audit.py`). A group ends exactly once.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec


class GroupState(StrEnum):
    """Where a group is. The last five are ends."""

    PENDING = "pending"
    """Drawn, waiting for a slot."""
    RUNNING = "running"
    """Granted to an actor; holds a slot."""
    SCORED = "scored"
    """Every member ended, enough of them with a reward."""
    QUEUED = "queued"
    """Has signal and waits for the learner."""
    TRAINED = "trained"
    """Consumed by an optimizer step."""
    STALE = "stale"
    """Too old when its turn came."""
    FILTERED = "filtered"
    """All rewards equal: nothing to learn from."""
    FAILED = "failed"
    """Too many members faulted, or too many attempts."""
    CANCELLED = "cancelled"
    """Ended by the coordinator: it could no longer be used, or the run ended."""

    @property
    def is_end(self) -> bool:
        return self not in _NEXT


_NEXT: Mapping[GroupState, frozenset[GroupState]] = {
    GroupState.PENDING: frozenset({GroupState.RUNNING, GroupState.FAILED, GroupState.CANCELLED}),
    GroupState.RUNNING: frozenset({GroupState.SCORED, GroupState.FAILED, GroupState.CANCELLED}),
    GroupState.SCORED: frozenset({GroupState.QUEUED, GroupState.FILTERED}),
    GroupState.QUEUED: frozenset({GroupState.TRAINED, GroupState.STALE, GroupState.CANCELLED}),
}
ENDS = tuple(state for state in GroupState if state.is_end)


class Transition(msgspec.Struct, frozen=True, kw_only=True, tag="group", tag_field="kind"):
    """A group went from one state to the next. `old` is None when it was made."""

    group_id: str
    old: GroupState | None
    new: GroupState
    at_s: float


class LedgerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many groups ended in each state, and how many rollouts they had."""

    groups: dict[str, int]
    rollouts: dict[str, int]


class Ledger:
    """Counts groups by state and rollouts by the end state of their group."""

    def __init__(self, *, sink: Callable[[Transition], None], clock: Callable[[], float]) -> None:
        self._sink = sink
        self._clock = clock
        self._created = 0
        self._states: Counter[GroupState] = Counter()
        self._rollouts: Counter[GroupState] = Counter()

    def create(self, group_id: str) -> None:
        """Count a new group as pending."""
        self._created += 1
        self._states[GroupState.PENDING] += 1
        self._emit(group_id, None, GroupState.PENDING)

    def move(self, group_id: str, old: GroupState, new: GroupState) -> None:
        """Count one transition; an impossible one is a bug and asserts."""
        assert new in _NEXT.get(old, ()), f"group {group_id}: {old} -> {new}"
        self._states[old] -= 1
        self._states[new] += 1
        self._emit(group_id, old, new)
        assert self.is_balanced, f"ledger out of balance after {group_id}: {self._states}"

    def restore(self, counts: LedgerCounts, *, running: int, queued: int) -> None:
        """Go on from the counts of a checkpoint, whose live groups are taken back in."""
        self._states.update({GroupState(name): number for name, number in counts.groups.items()})
        self._states.update({GroupState.RUNNING: running, GroupState.QUEUED: queued})
        self._rollouts.update(
            {GroupState(name): number for name, number in counts.rollouts.items()}
        )
        self._created = self._states.total()

    def count_rollouts(self, state: GroupState, number: int) -> None:
        """Count the rollouts written for a group that ended in `state`."""
        self._rollouts[state] += number

    @property
    def is_balanced(self) -> bool:
        """Whether every group made is in exactly one state."""
        counts = self._states.values()
        return sum(counts) == self._created and min(counts, default=0) >= 0

    @property
    def live(self) -> int:
        """Groups that have not ended."""
        return sum(number for state, number in self._states.items() if not state.is_end)

    def __getitem__(self, state: GroupState) -> int:
        return self._states[state]

    def states(self) -> dict[str, int]:
        """Groups by state, ends and others."""
        return {state.value: self._states[state] for state in GroupState}

    def counts(self) -> LedgerCounts:
        """The ended groups, and their rollouts."""
        return LedgerCounts(
            groups={state.value: self._states[state] for state in ENDS},
            rollouts={state.value: self._rollouts[state] for state in ENDS},
        )

    def _emit(self, group_id: str, old: GroupState | None, new: GroupState) -> None:
        self._sink(Transition(group_id=group_id, old=old, new=new, at_s=self._clock()))
