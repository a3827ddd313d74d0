"""What becomes of what ended: an attempt of a member, a group with all its members, a group for good.

    rollout -- finish --> replay queue -- scored, ended --> books, ledger, mixture, watchdog

Called from between the stages; awaits nothing.
"""

import logging

from configs.schema import RunConfig
from rollout.books import Books
from rollout.buffer import MEMBER_RETRIES, Ended, Group, ReplayQueue
from rollout.curriculum import Curriculum, Draw
from rollout.feed import Feed
from rollout.ledger import GroupState, Ledger
from rollout.pools import Pools
from rollout.quarantine import Quarantine
from rollout.types import Rollout
from rollout.watchdog import Watchdog

logger = logging.getLogger(__name__)


class Endings:
    """Tells everybody who has to know."""

    def __init__(
        self,
        config: RunConfig,
        *,
        ledger: Ledger,
        queue: ReplayQueue,
        curriculum: Curriculum,
        feed: Feed,
        pools: Pools,
        quarantine: Quarantine,
        books: Books,
        watchdog: Watchdog,
    ) -> None:
        self._max_attempts = config.rollout.max_attempts
        self._ledger = ledger
        self._queue = queue
        self._curriculum = curriculum
        self._feed = feed
        self._pools = pools
        self._quarantine = quarantine
        self._books = books
        self._watchdog = watchdog

    def rollout(self, actor: str, rollout: Rollout) -> None:
        """An attempt ended on an actor: it is recorded, or played once more."""
        self._books.ended(rollout)
        evaluation = self._feed.evaluation
        if evaluation is not None and evaluation.has(rollout):
            if rollout.stop.is_fault and rollout.attempt < MEMBER_RETRIES:
                self._feed.retry(actor, evaluation.retry(rollout))
                return
            evaluation.record(rollout)
            self._books.evaluated(evaluation, rollout)
            return
        self._quarantine.note(rollout)
        group = self._queue.group(rollout.group_id)
        if self._queue.finish(rollout) and group is not None:
            self._feed.retry_member(actor, group, rollout)

    def scored(self, group: Group, has_signal: bool | None) -> None:
        """Every member ended; `has_signal` is None when too few of them have a verdict."""
        self._books.scored(group)
        self._quarantine.note_group(group)
        if has_signal is not None:
            rewards = [r.reward for r in group.trainable if r.reward is not None]
            self._curriculum.note(group.task, rewards)
        if has_signal:
            self._watchdog.signal_seen()

    def ended(self, ended: Ended) -> None:
        """Write down an ended group, stop what of it still runs, ask for its task again if need be."""
        group = ended.group
        number = self._books.group_ended(group)
        self._ledger.count_rollouts(group.state, number)
        if group.state is GroupState.CANCELLED:
            self._feed.cancel(group)
        if ended.retry:
            self._requeue(group)
        self._feed.wake()
        self._pools.group_ended(group.task.pool_key)
        self._watchdog.group_ended(group)

    def _requeue(self, group: Group) -> None:
        attempt = group.attempt + 1
        if not self._pools.is_live(group.task.pool_key):
            logger.info("task %s is not drawn again: its pool drains", group.task.id)
        elif self._quarantine.bars(group.task):
            logger.info("task %s is not drawn again: it is quarantined", group.task.id)
        elif attempt < self._max_attempts:
            self._curriculum.requeue(Draw(task=group.task, attempt=attempt))
        else:
            logger.warning("task %s came too late %d times and is given up", group.task.id, attempt)
