"""What a run says of itself while it goes on: the records of its control plane."""

import msgspec

from rollout.evaluate import Progress
from rollout.pools import PoolState
from rollout.quarantine import Barred, ToolFaults
from rollout.types import FORMAT


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a pool, as `GET /status` shows it."""

    name: str
    version: str
    state: PoolState = PoolState.LIVE
    slots_held: int


class PoolInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a pool, as `GET /pools` shows it."""

    name: str
    version: str
    state: PoolState
    source: str
    trusted: bool
    weight: float
    train: list[str]
    """Ids of the environments trained on."""
    envs: list[str]
    groups_live: int
    """Groups on their way, those in a batch too."""
    is_evaluated: bool
    """Evaluation needs it, drawn from or not."""
    layers: list[str] = []
    """What isolates it, where it was added while the run went on."""
    quarantine: list[Barred] = []
    """Tasks and environments that are not drawn because they kept failing."""
    tool_faults: list[ToolFaults] = []


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`GET /status`."""

    format: int = FORMAT
    run_dir: str
    phase: str
    is_paused: bool = False
    """Nothing new begins until `POST /resume`."""
    evaluation: Progress | None = None
    """How far the evaluation that is played now is."""
    step: int
    steps: int
    version: int
    engines: dict[str, int]
    """Version held by each engine."""
    pools: list[PoolStatus]
    slots: int
    slots_held: int
    groups: dict[str, int]
    """Groups by state."""
    reward: float | None
    """Mean of the rollouts that ended before the last step."""
    uptime_s: float


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """`POST /checkpoint`: a complete checkpoint."""

    step: int
    path: str
