"""Checkpoints of a running run: when one is due, what goes into it, and in which order."""

import asyncio
import logging
from pathlib import Path

import msgspec

from configs.schema import RunConfig
from rollout import checkpoints, snapshot
from rollout.books import Books
from rollout.buffer import ReplayQueue
from rollout.curriculum import Curriculum
from rollout.ledger import GroupState, Ledger
from rollout.pools import Pools, PoolState
from rollout.ports import LearnerPort
from rollout.quarantine import Quarantine
from rollout.refusals import Refused
from rollout.scores import Score
from rollout.snapshot import Snapshot
from rollout.status import Saved
from rollout.types import TrainBatch

logger = logging.getLogger(__name__)

# What whoever still waits for a checkpoint is told.
OVER = "the run ended before it was saved"


class Saver:
    """Writes checkpoints: the learner's part, the coordinator's of the same step, then the mark."""

    def __init__(
        self,
        *,
        run_dir: Path,
        config: RunConfig,
        pools: Pools,
        ledger: Ledger,
        queue: ReplayQueue,
        curriculum: Curriculum,
        quarantine: Quarantine,
        books: Books,
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._pools = pools
        self._ledger = ledger
        self._queue = queue
        self._curriculum = curriculum
        self._quarantine = quarantine
        self._books = books
        self._newest: Saved | None = None
        self._is_over = False
        self._is_stuck = False
        self._asked: asyncio.Future[Saved | Refused] | None = None

    def restore(self, state: Snapshot) -> None:
        """Put back what a checkpoint holds."""
        snapshot.restore(
            state,
            ledger=self._ledger,
            queue=self._queue,
            curriculum=self._curriculum,
            quarantine=self._quarantine,
            books=self._books,
        )
        self._note(state.step)

    # -- after a collapse ---------------------------------------------------------------------

    async def rolled_back(self, batch: TrainBatch) -> TrainBatch:
        """The learner's orders, with a way back where the run collapsed and is to go back."""
        collapse = self._books.collapse
        if not (self._config.alarm.rollback and collapse.is_on):
            return batch
        path = await asyncio.to_thread(checkpoints.not_after, self._run_dir, collapse.good_step)
        if path is None and not self._is_stuck:
            self._is_stuck = True
            logger.warning(
                "step %d: no checkpoint from before the collapse (its best was at step %d): the run "
                "goes on as it is; write some more often with checkpoint.every",
                batch.step,
                collapse.good_step,
            )
        if path is None:
            return batch
        collapse.begin_anew()
        logger.warning(
            "step %d: back to the weights of %s, at half the learning rate; what the weights since "
            "then sampled is not trained on",
            batch.step,
            path,
        )
        return msgspec.structs.replace(batch, rollback=str(path))

    # -- on demand ----------------------------------------------------------------------------

    async def ask(self) -> Saved:
        """Wait for a checkpoint between two steps; who asks at once gets the same. Raises Refused.

        Training sees `is_asked` when it comes to such a moment.
        """
        if self._is_over:
            raise Refused(OVER)
        if self._asked is None:
            self._asked = asyncio.get_running_loop().create_future()
        # Whoever asks may go away; the others still wait.
        answer = await asyncio.shield(self._asked)
        if isinstance(answer, Refused):
            raise answer
        return answer

    @property
    def is_asked(self) -> bool:
        return self._asked is not None

    def saved(self, step: int) -> Saved | None:
        """The complete checkpoint of `step`, if that is the newest one."""
        return self._newest if self._newest and self._newest.step == step else None

    def answer(self, answer: Saved | Refused) -> None:
        """Tell whoever asked."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.set_result(answer)

    def end(self) -> None:
        """The run is over: nothing is saved any more."""
        self._is_over = True
        self.answer(Refused(OVER))

    def _note(self, step: int) -> None:
        path = checkpoints.directory(self._run_dir, step)
        self._newest = Saved(step=step, path=str(path))

    def _prune(self) -> None:
        spare = None
        if self._config.alarm.rollback:
            spare = checkpoints.not_after(self._run_dir, self._books.collapse.good_step)
        checkpoints.prune(self._run_dir, self._config.checkpoint.keep, spare=spare)

    # -- the parts ----------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether one is written after `step`: asked for, by the recipe too, or the last step."""
        every = self._config.checkpoint.every
        return (
            self.is_asked or step == self._config.learner.steps or (every > 0 and step % every == 0)
        )

    async def begin(self, learner: LearnerPort, step: int) -> Path:
        """Have the learner write its part; returns the directory, which does not count yet."""
        part = await asyncio.to_thread(checkpoints.begin, self._run_dir, step)
        await learner.save(str(part))
        return part

    async def commit(
        self,
        part: Path,
        *,
        step: int,
        version: int,
        before: dict[str, dict[str, Score]],
        wall_s: float,
    ) -> None:
        """Add the coordinator's part and complete the checkpoint; older ones are removed."""
        # Sizes and state belong to one moment: nothing may be awaited between the two.
        flushed = self._books.flush()
        versions = self._pools.records()
        state = Snapshot(
            step=step,
            version=version,
            lineage=self._queue.lineage,
            weights_every=self._config.weights.every,
            cursor=self._curriculum.cursor,
            rates=self._curriculum.rates,
            requeued=self._curriculum.requeued,
            pools=[v.key for v in versions if v.state is PoolState.LIVE],
            versions=versions,
            trained=self._pools.trained,
            quarantine=self._quarantine.barred,
            next_id=self._queue.next_id,
            queued=self._queue.records(GroupState.QUEUED),
            running=self._queue.records(GroupState.RUNNING),
            ledger=self._ledger.counts(),
            before=before,
            lag_max=self._books.lag_max,
            wall_s=wall_s,
            sizes={},
        )
        sizes = await asyncio.to_thread(flushed.wait)
        state = msgspec.structs.replace(state, sizes=sizes)
        await asyncio.to_thread(snapshot.commit, part, state)
        await asyncio.to_thread(self._prune)
        self._note(step)
        assert self._newest is not None
        self.answer(self._newest)
