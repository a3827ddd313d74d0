"""What a report reads of each line of a run's files, and how it copes with lines that cannot be read.

The structs name only what a report needs, so that files of older and newer runs can be read, too, and
lines with long texts fast.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from configs.load import ConfigError
from rollout.files import whole_lines
from rollout.ledger import GroupState
from rollout.types import StopReason

T = TypeVar("T")


class _Named(msgspec.Struct, frozen=True):
    name: str


class _Model(msgspec.Struct, frozen=True):
    path: str


class _Pool(msgspec.Struct, frozen=True):
    train: list[str] = []
    split: str = "train"


class _Pacing(msgspec.Struct, frozen=True):
    group_size: int
    groups_per_step: int
    max_lag: int
    draw: str = "uniform"


class _Learner(msgspec.Struct, frozen=True):
    steps: int


class _EvalSet(msgspec.Struct, frozen=True):
    envs: list[str] = []
    level: int = 0
    count: int = 0


class _Eval(msgspec.Struct, frozen=True):
    sets: dict[str, _EvalSet] = {}


class Settings(msgspec.Struct, frozen=True):
    """What a report says of `config.json`; the settings it does not know are no matter."""

    run: _Named
    model: _Model
    rollout: _Pacing
    learner: _Learner
    pools: dict[str, _Pool] = {}
    eval: _Eval = _Eval()


class StepLine(msgspec.Struct, frozen=True):
    """What is kept of a line of `metrics.jsonl`; seconds. NaN where a line lacks the key."""

    step: int
    reward_all: float = msgspec.field(name="reward/all_mean", default=math.nan)
    step_s: float = msgspec.field(name="time/step_s", default=math.nan)
    wait_rollout_s: float = msgspec.field(name="time/wait_rollout_s", default=math.nan)
    wait_learner_s: float = msgspec.field(name="time/wait_learner_s", default=math.nan)
    train_s: float = msgspec.field(name="time/train_s", default=math.nan)


class TurnLine(msgspec.Struct, frozen=True):
    """What is kept of a turn."""

    action: str
    observation: str
    is_bad_call: bool = False
    generate_s: float = 0.0
    env_s: float = 0.0


class RowLine(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept, for a moment, of a line of the rollout log; see `files.RolloutRow`."""

    group_id: str
    member: int = 0
    state: GroupState | None
    step: int | None
    lag: int | None
    task_id: str
    env: str
    config: msgspec.Raw
    stop: StopReason
    reward: float | None
    versions: list[int]
    turns: list[TurnLine]
    error: str = ""
    prompt: str = ""


class EventLine(msgspec.Struct, frozen=True):
    """Any line of `events.jsonl`: the fields of every kind, most of them unset."""

    kind: str
    old: GroupState | None = None
    new: GroupState | None = None
    name: str = ""
    at_s: float = math.nan
    who: str = ""
    start_s: float = math.nan
    end_s: float = math.nan


class Reader:
    """Typed lines of the files of a run; what cannot be read is counted by file and left out."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self.unreadable: Counter[str] = Counter()

    def read(self, name: str, kind: type[T]) -> Iterator[T]:
        decode = msgspec.json.Decoder(kind).decode
        for line in whole_lines(self._run_dir / name):
            try:
                yield decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.unreadable[name] += 1

    def parts(self) -> Iterator[RowLine]:
        for part in sorted((self._run_dir / "rollouts").glob("part_*.jsonl")):
            yield from self.read(f"rollouts/{part.name}", RowLine)


def read_settings(run_dir: Path) -> Settings:
    """The config of a run; raises ConfigError where there is none."""
    path = run_dir / "config.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except OSError as error:
        raise ConfigError(
            f"{str(run_dir)!r} is no run directory: it has no config.json that can be read"
        ) from error
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{str(run_dir)!r} is no run directory: its config.json is not that of a run ({error})"
        ) from error
