"""Notices that a run does not get on, and says why: nothing happens, or nothing can be learned."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.schema import RunConfig
from rollout.buffer import Group
from rollout.fault_log import last_line
from rollout.ledger import GroupState
from rollout.types import StopReason

logger = logging.getLogger(__name__)

# How many times `control.stall_s` a step or a save of the learner may take.
LEARNER_PATIENCE = 20.0

# Groups in a row, in batches, that end without one to train on before the run gives up.
FRUITLESS_BATCHES = 50

# How often it is said that groups end and no step is trained.
SAY_EVERY_S = 20.0

# Limits of a rollout that most may hit, by the stop reason that says so.
_LIMITS = {
    StopReason.CONTEXT_FULL: "max_context_tokens",
    StopReason.MAX_TURNS: "max_turns",
    StopReason.MAX_TOKENS: "max_reply_tokens",
}


class StallError(RuntimeError):
    """The run does not get on; the message says why."""


class Watchdog:
    """Told what happens; raises StallError when that is too little."""

    def __init__(self, config: RunConfig, *, clock: Callable[[], float]) -> None:
        self._rollout = config.rollout
        self._stall_s = config.control.stall_s
        self._limit = FRUITLESS_BATCHES * config.rollout.groups_per_step
        self._clock = clock
        self._progress_s = clock()
        self._patience = 1.0
        self._fruitless: list[Group] = []
        # Ends without a step since the last one, since when, and when that was last said.
        self._unused: Counter[GroupState] = Counter()
        self._since_s: float | None = None
        self._said_s = 0.0

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
        self._progress_s = self._since_s = self._said_s = self._clock()
        self._fruitless.clear()
        self._unused.clear()

    def training_ended(self) -> None:
        """No step is waited for any more."""
        self._unused.clear()

    def group_ended(self, group: Group) -> None:
        """Raises StallError when too many in a row taught nothing: the run would play for ever."""
        if group.state not in (GroupState.FILTERED, GroupState.FAILED):
            return
        if self._since_s is None:
            self._since_s = self._said_s = self._clock()
        self._unused[group.state] += 1
        self._fruitless.append(group)
        if len(self._fruitless) >= self._limit:
            raise StallError(self._why_fruitless())

    def check(self, diagnose: Callable[[], str]) -> None:
        """Say that no step comes, where groups end without one, every `SAY_EVERY_S`.

        Raises StallError, with a diagnosis, when nothing happened for too long.
        """
        now_s = self._clock()
        limit_s = self._stall_s * self._patience
        if now_s - self._progress_s > limit_s:
            raise StallError(f"nothing happened for {limit_s:g} s; {diagnose()}")
        # While the learner works, a step does come.
        if self._unused and self._patience == 1.0 and now_s - self._said_s >= SAY_EVERY_S:
            self._say_unused(now_s)

    def _say_unused(self, now_s: float) -> None:
        assert self._since_s is not None, "set with the first of them"
        self._said_s = now_s
        filtered, failed = self._unused[GroupState.FILTERED], self._unused[GroupState.FAILED]
        stops = f"; the last ones' rollouts: {_shares(self._stops())}" if self._fruitless else ""
        logger.info(
            "no step for %.0f s: %d groups filtered (equal rewards), %d failed%s",
            now_s - self._since_s,
            filtered,
            failed,
            stops,
        )

    def _stops(self) -> Counter[StopReason]:
        return Counter(r.stop for group in self._fruitless for r in group.rollouts)

    def _why_fruitless(self) -> str:
        failed = [one for one in self._fruitless if one.state is GroupState.FAILED]
        equal = [one for one in self._fruitless if one.state is GroupState.FILTERED]
        rewards = Counter(r.reward for one in equal for r in one.trainable)
        errors = [fault.error for one in failed[-1:] for fault in one.rollouts if fault.error]
        ends = []
        if failed:
            ends.append(f"{len(failed)} failed")
        if equal:
            given = ", ".join(f"{reward:g} ({n} times)" for reward, n in sorted(rewards.items()))
            ends.append(f"{len(equal)} had equal rewards{': ' if given else ''}{given}")
        parts = [f"{self._limit} groups in a row had nothing to train on: {', '.join(ends)}"]
        stops = self._stops()
        if stops:
            parts.append(f"their rollouts ended as {_shares(stops)}")
        parts.append(self._cure(stops, has_failed=bool(failed), has_equal=bool(equal)))
        if errors:
            parts.append(f"the last fault: {last_line(errors[-1])}")
        return "; ".join(parts)

    def _cure(self, stops: Counter[StopReason], *, has_failed: bool, has_equal: bool) -> str:
        """What to change, as far as the ends of the rollouts tell."""
        for stop, field in _LIMITS.items():
            if 2 * stops[stop] > stops.total():
                value = getattr(self._rollout, field)
                return f"most hit rollout.{field}={value}: raise it, or give shorter tasks"
        if not has_equal:
            return "the environments or what plays them fail"
        hint = "the tasks are too hard or too easy for the policy"
        return f"{hint}, or their environments fail" if has_failed else hint


def _shares(stops: Counter[StopReason]) -> str:
    """`97 % context_full, 3 % answered`."""
    return ", ".join(f"{100 * n / stops.total():.0f} % {stop}" for stop, n in stops.most_common())
