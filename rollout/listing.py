"""The runs under a directory, a line each: when, how far, what reward, what success.

Reads what a run has written so far; what is not there yet, or cannot be read, is a dash.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from rollout import processes
from rollout.metrics import RECENT_STEPS, Values
from rollout.summary import BeforeAfter, Summary

# Enough for the last metrics: a line takes two or three kilobytes.
_TAIL_BYTES = 1 << 16

T = TypeVar("T")


class _Learner(msgspec.Struct, frozen=True):
    steps: int = 0


class _Config(msgspec.Struct, frozen=True):
    """What a listing needs of `config.json`."""

    learner: _Learner = _Learner()


@dataclass(slots=True, frozen=True, kw_only=True)
class RunLine:
    """One run in the list."""

    path: Path
    begun_s: float
    """Seconds since the epoch."""
    state: str
    """`done`, `running`, or `stopped` before its end."""
    step: int
    steps: int
    reward: float | None
    """Mean of the last steps."""
    success: str

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.begun_s))
        reward = "-" if self.reward is None else f"{self.reward:.3f}"
        steps = f"{self.step}/{self.steps}"
        return f"{when}  {self.state:<7}  {steps:>9}  {reward:>6}  {self.success:<28}  {self.path}"


HEAD = f"{'begun':<16}  {'state':<7}  {'steps':>9}  {'reward':>6}  {'success':<28}  run"


def is_run(path: Path) -> bool:
    """Whether a directory is that of a run."""
    return (path / "code.diff").is_file() or (path / "rollouts").is_dir()


def runs(folder: Path) -> list[RunLine]:
    """The runs directly under `folder`, newest first."""
    if not folder.is_dir():
        return []
    lines = [_read(path) for path in folder.iterdir() if is_run(path)]
    return sorted(lines, key=lambda line: line.begun_s, reverse=True)


def _read(path: Path) -> RunLine:
    config_path = path / "config.json"
    begun = config_path if config_path.exists() else path
    config = _parsed(config_path, _Config) or _Config()
    summary = _parsed(path / "summary.json", Summary)
    recent = _recent(path / "metrics.jsonl")
    rewards = [values["reward/all_mean"] for values in recent if "reward/all_mean" in values]
    return RunLine(
        path=path,
        begun_s=begun.stat().st_mtime,
        state="done" if summary is not None else "running" if _is_running(path) else "stopped",
        step=int(recent[-1].get("step", 0)) if recent else 0,
        steps=config.learner.steps,
        reward=statistics.fmean(rewards) if rewards else None,
        success=_success(summary.eval) if summary is not None else "-",
    )


def _success(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> str:
    """The first set, sampled: before -> after, as far as there are both."""
    for name, modes in evaluation.items():
        if (scores := modes.get("sampled")) is not None:
            means = [s.mean for s in (scores.before, scores.after) if s is not None]
            return f"{name} " + " -> ".join("-" if m is None else f"{m:.3f}" for m in means)
    return "-"


def _is_running(path: Path) -> bool:
    try:
        recorded = processes.read_pids(path)
    except (OSError, msgspec.MsgspecError):
        return False
    return any(one.name == "launch" and processes.is_alive(one) for one in recorded)


def _recent(path: Path) -> list[Values]:
    """The last lines of the metrics, oldest first; a half-written one is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    values: list[Values] = []
    for line in lines[-RECENT_STEPS - 1 :]:
        try:
            values.append(msgspec.json.decode(line, type=dict[str, float | int]))
        except msgspec.MsgspecError:
            continue
    return values


def _parsed(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
