"""The coordinator's part of a checkpoint: what is queued, where the data cursor stands."""

from pathlib import Path

import msgspec

from envpool.task import PoolKey, Task
from rollout import checkpoints
from rollout.ledger import LedgerCounts
from rollout.types import FORMAT, TrainGroup


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator after a step. `queued` groups were scored and wait for the learner."""

    format: int = FORMAT
    step: int
    version: int
    """The newest published version: versions are never reused."""
    cursor: int
    """Tasks drawn so far."""
    signal: dict[str, float]
    """Share of recent groups with signal, by `pool/env`."""
    pools: list[PoolKey]
    queued: list[TrainGroup]
    running: list[Task]
    """Tasks whose groups were being played."""
    ledger: LedgerCounts


def commit(directory: Path, snapshot: Snapshot) -> None:
    """Write the coordinator's part beside the learner's, then declare the checkpoint complete."""
    resume = directory / "resume"
    resume.mkdir(exist_ok=True)
    (resume / "coordinator.msgpack").write_bytes(msgspec.msgpack.encode(snapshot))
    checkpoints.mark_done(directory)


def read(directory: Path) -> Snapshot:
    """The coordinator's part of a complete checkpoint."""
    data = (directory / "resume" / "coordinator.msgpack").read_bytes()
    return msgspec.msgpack.decode(data, type=Snapshot)
