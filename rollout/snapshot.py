"""The coordinator's part of a checkpoint: taken between two steps, and put back when a run resumes."""

from pathlib import Path

import msgspec

from envpool.task import PoolKey
from rollout import checkpoints
from rollout.books import Books
from rollout.buffer import GroupRecord, ReplayQueue
from rollout.curriculum import Curriculum, Draw
from rollout.ledger import GroupState, Ledger, LedgerCounts
from rollout.lineage import Lineage
from rollout.pass_rates import Rates
from rollout.pools import PoolRecord
from rollout.quarantine import Barred, Quarantine
from rollout.scores import Score
from rollout.types import FORMAT

_FILE = "coordinator.msgpack"


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator after a step."""

    format: int = FORMAT
    step: int
    version: int
    """The newest published version."""
    lineage: Lineage
    weights_every: int
    cursor: int
    """Tasks drawn so far."""
    rates: Rates
    """As `Curriculum.rates`."""
    requeued: list[Draw]
    """Tasks to draw before new ones."""
    pools: list[PoolKey]
    """Those drawn from."""
    versions: list[PoolRecord] = []
    """The same, and those that drain, as `pools.json` has them."""
    trained: list[str] | None = None
    """As `PoolsFile.trained`."""
    quarantine: list[Barred] = []
    """What is not drawn because it kept failing."""
    next_id: int
    """Groups made so far."""
    queued: list[GroupRecord]
    """Groups that wait for the learner, in their order."""
    running: list[GroupRecord]
    """Groups that were being played."""
    ledger: LedgerCounts
    before: dict[str, dict[str, Score]]
    """What the evaluation before training gave."""
    lag_max: int
    wall_s: float
    """Seconds of running up to here."""
    sizes: dict[str, int]
    """Bytes of each line file of the run, by its path in the run directory."""

    @property
    def place(self) -> int:
        """The place of the version at which the next step computes its gradient."""
        return self.step // self.weights_every


def commit(directory: Path, snapshot: Snapshot) -> None:
    """Write the coordinator's part beside the learner's, then declare the checkpoint complete."""
    resume = directory / "resume"
    resume.mkdir(exist_ok=True)
    (resume / _FILE).write_bytes(msgspec.msgpack.encode(snapshot))
    checkpoints.mark_done(directory)


def read(directory: Path) -> Snapshot:
    """The coordinator's part of a complete checkpoint; raises OSError and msgspec.MsgspecError."""
    return msgspec.msgpack.decode((directory / "resume" / _FILE).read_bytes(), type=Snapshot)


def restore(
    snapshot: Snapshot,
    *,
    ledger: Ledger,
    queue: ReplayQueue,
    curriculum: Curriculum,
    quarantine: Quarantine,
    books: Books,
) -> None:
    """Put the state back. What was being played ends as cancelled, and its tasks are drawn first.

    Tasks of a pool that is drawn from no more are not drawn again; what of it is queued can be trained.
    A half-played group is not continued: its members would have been sampled by weights that no
    engine holds any more, from a place in the conversation that no environment has.
    """
    ledger.restore(snapshot.ledger, running=len(snapshot.running), queued=len(snapshot.queued))
    queue.resume(next_id=snapshot.next_id, steps_done=snapshot.step)
    queue.restore(snapshot.queued, GroupState.QUEUED)
    quarantine.restore(snapshot.quarantine)
    curriculum.restore(snapshot.cursor, snapshot.rates)
    books.lag_max = snapshot.lag_max
    for group in queue.restore(snapshot.running, GroupState.RUNNING):
        queue.cancel(group)
        if curriculum.has(group.task.pool_key):
            curriculum.requeue(Draw(task=group.task, attempt=group.attempt))
    for draw in snapshot.requeued:
        if curriculum.has(draw.task.pool_key):
            curriculum.requeue(draw)
        else:
            queue.cancel(queue.create(draw.task, attempt=draw.attempt))
    queue.drop_surplus()
