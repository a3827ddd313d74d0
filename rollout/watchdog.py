"""Notices that a run does not get on, and says why: nothing happens, or nothing can be learned."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rollout.buffer import Group
from rollout.ledger import GroupState

# How many times `control.stall_s` a step or a save of the learner may take.
LEARNER_PATIENCE = 20.0

# Groups in a row, in batches, that end without one to train on before the run gives up.
FRUITLESS_BATCHES = 50


class StallError(RuntimeError):
    """The run does not get on; the message says why."""


class Watchdog:
    """Told what happens; raises StallError when that is too little."""

    def __init__(self, *, stall_s: float, groups_per_step: int, clock: Callable[[], float]) -> None:
        self._stall_s = stall_s
        self._limit = FRUITLESS_BATCHES * groups_per_step
        self._clock = clock
        self._progress_s = clock()
        self._patience = 1.0
        self._fruitless: list[Group] = []

    def something_happened(self) -> None:
        """A turn or a rollout ended."""
        self._progress_s = self._clock()

    def signal_seen(self) -> None:
        """A group can be trained on."""
        self._fruitless.clear()

    @contextmanager
    def learner_at_work(self) -> Iterator[None]:
        """Nothing else may happen meanwhile: with every slot held, all wait for the learner."""
        self._patience = LEARNER_PATIENCE
        try:
            yield
        finally:
            self._patience = 1.0
            self._progress_s = self._clock()

    def step_trained(self) -> None:
        """Something was learned."""
        self._progress_s = self._clock()
        self._fruitless.clear()

    def group_ended(self, group: Group) -> None:
        """Raises StallError when too many in a row taught nothing: the run would play for ever."""
        if group.state not in (GroupState.FILTERED, GroupState.FAILED):
            return
        self._fruitless.append(group)
        if len(self._fruitless) < self._limit:
            return
        failed = [one for one in self._fruitless if one.state is GroupState.FAILED]
        errors = [fault.error for one in failed[-1:] for fault in one.rollouts if fault.error]
        rewards = Counter(r.reward for one in self._fruitless for r in one.trainable)
        raise StallError(
            f"{self._limit} groups in a row had nothing to train on: {len(failed)} failed, the "
            f"others had equal rewards {dict(rewards)}; the tasks are too hard or too easy for the "
            f"policy, or their environments fail. {errors[-1] if errors else ''}"
        )

    def check(self, diagnose: Callable[[], str]) -> None:
        """Raises StallError, with a diagnosis, when nothing happened for too long."""
        limit_s = self._stall_s * self._patience
        if self._clock() - self._progress_s > limit_s:
            raise StallError(f"nothing happened for {limit_s:g} s; {diagnose()}")
