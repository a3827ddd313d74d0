"""What is measured between two optimizer steps, and where it goes: jsonl, W&B, the terminal.

One writer: the coordinator. Keys are `area/name[/stat]` with units. Faulted rollouts never enter a
mean as zeros: they are counted under `stop/`.
"""

import logging
import queue
import statistics
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.schema import RunConfig
from rollout.files import RunFiles
from rollout.ledger import GroupState
from rollout.types import FORMAT, EngineStats, Rollout, StopReason
from rollout.weights import run_id

logger = logging.getLogger(__name__)

Values = dict[str, float | int]

# Steps over which a person wants a mean: fewer are noise, more hide what changes.
RECENT_STEPS = 10


@dataclass(slots=True)
class _Pool:
    """What is counted of one pool."""

    groups: int = 0
    faults: int = 0
    tool_faults: int = 0
    rewards: list[float] = field(default_factory=list)

    def values(self) -> Values:
        counts: Values = {
            "groups": self.groups,
            "faults": self.faults,
            "tool_faults": self.tool_faults,
        }
        return counts | ({"reward_mean": statistics.fmean(self.rewards)} if self.rewards else {})


class Window:
    """Collects what ends between two steps."""

    def __init__(self) -> None:
        self._rollouts: list[Rollout] = []
        self._signal: Counter[str] = Counter()
        self._ends: Counter[GroupState] = Counter()
        self._env_s: dict[str, list[float]] = {}
        self._pools: dict[str, _Pool] = {}
        self._loop_lags_s: list[float] = []

    def add_end(self, state: GroupState) -> None:
        """Count a group that ended in `state`."""
        self._ends[state] += 1

    def add_scored(self, rollouts: Sequence[Rollout]) -> None:
        """Count a group all of whose members ended."""
        self._rollouts += rollouts
        rewards = {r.reward for r in rollouts if r.reward is not None}
        if len(rewards) > 1:
            self._signal["mixed"] += 1
        elif rewards and max(rewards) > 0:
            self._signal["all_one"] += 1
        elif rewards:
            self._signal["all_zero"] += 1
        for rollout in rollouts:
            times = self._env_s.setdefault(rollout.pool, [])
            times += [turn.env_s for turn in rollout.turns]

    def add_pool(self, pool: str, rollouts: Sequence[Rollout]) -> None:
        """Count a scored group of a pool, with the attempts that were played again."""
        tally = self._pools.setdefault(pool, _Pool())
        tally.groups += 1
        tally.rewards += [r.reward for r in rollouts if r.reward is not None]
        tally.faults += sum(r.stop.is_fault for r in rollouts)
        tally.tool_faults += sum(len(r.faulty_actions) for r in rollouts)

    def add_loop_lag(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self._loop_lags_s.append(seconds)

    def values(self) -> Values:
        """What the window shows, as flat metrics."""
        values: Values = {}
        graded = [r for r in self._rollouts if r.reward is not None]
        rewards = [r.reward for r in graded if r.reward is not None]
        if graded:
            sampled = [r.num_sampled_tokens for r in graded]
            tokens = [sum(len(row.token_ids) for row in r.rows) for r in graded]
            turns = [turn for r in graded for turn in r.turns]
            values |= {
                "reward/all_mean": statistics.fmean(rewards),
                "rollout/tokens_mean": statistics.fmean(tokens),
                "rollout/tokens_max": max(tokens),
                "rollout/sampled_tokens_mean": statistics.fmean(sampled),
                "rollout/turns_mean": len(turns) / len(graded),
                "rollout/truncated_frac": sum(r.stop.is_truncated for r in graded) / len(graded),
                "rollout/bad_call_frac": sum(turn.is_bad_call for turn in turns)
                / max(1, len(turns)),
                "rollout/repeated_call_frac": sum(map(num_repeated, graded)) / max(1, len(turns)),
                "rollout/wall_s_p50": statistics.median(r.wall_s for r in graded),
            }
        stops = Counter(rollout.stop for rollout in self._rollouts)
        for stop in StopReason:
            values[f"stop/{stop}"] = stops[stop] / max(1, len(self._rollouts))
        for name in ("all_zero", "all_one", "mixed"):
            values[f"group/frac_{name}"] = self._signal[name] / max(1, self._signal.total())
        for state in (GroupState.FILTERED, GroupState.FAILED, GroupState.CANCELLED):
            values[f"group/{state}"] = self._ends[state]
        values["lag/dropped"] = self._ends[GroupState.STALE]
        for pool, times in self._env_s.items():
            if times:
                values[f"env/{pool}/step_s_p50"] = float(np.percentile(times, 50))
                values[f"env/{pool}/step_s_p99"] = float(np.percentile(times, 99))
        for pool, tally in self._pools.items():
            values |= {f"pool/{pool}/{name}": value for name, value in tally.values().items()}
        if self._loop_lags_s:
            values["loop/lag_s_p99"] = float(np.percentile(self._loop_lags_s, 99))
        return values


def num_repeated(rollout: Rollout) -> int:
    """Calls of a rollout that it had made before, to the letter."""
    actions = [turn.action for turn in rollout.turns if turn.action]
    return len(actions) - len(set(actions))


def trained_values(rollouts: Sequence[Rollout], lags: Sequence[int]) -> Values:
    """Reward and lag of the rollouts of one batch."""
    rewards = [r.reward for r in rollouts if r.reward is not None]
    values: Values = {
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        "lag/mean": statistics.fmean(lags),
        "lag/max": max(lags),
        "rollout/mixed_version_frac": sum(r.num_versions > 1 for r in rollouts) / len(rollouts),
    }
    for lag, number in sorted(Counter(lags).items()):
        values[f"lag/count_{lag}"] = number
    return values


def engine_values(
    stats: Mapping[str, EngineStats], before: Mapping[str, EngineStats], wall_s: float
) -> Values:
    """Means over the engines, and rates since `before`, `wall_s` seconds ago."""
    if not stats:
        return {}
    deltas = [(now, before.get(name)) for name, now in stats.items()]

    def since(key: str) -> float:
        return sum(getattr(now, key) - (getattr(old, key) if old else 0) for now, old in deltas)

    return {
        "engine/running": statistics.fmean(s.running for s in stats.values()),
        "engine/waiting": statistics.fmean(s.waiting for s in stats.values()),
        "engine/kv_used_frac": max(s.kv_used_frac for s in stats.values()),
        "engine/prefix_hit_frac": since("prefix_hit_tokens") / max(1.0, since("prompt_tokens")),
        "engine/recomputed_tokens": since("recomputed_tokens"),
        "engine/busy_frac": min(1.0, since("busy_s") / max(1e-9, wall_s * len(stats))),
        "perf/tokens_per_s": since("sampled_tokens") / max(1e-9, wall_s),
    }


def terminal_line(step: int, config: RunConfig, values: Mapping[str, float | int]) -> str:
    """One line per step, for a person; a dash where no rollout ended since the step before."""
    length, reward = values.get("rollout/tokens_mean"), values.get("reward/all_mean")
    return (
        f"step {step}/{config.learner.steps} | {values['time/step_s']:.2f} s"
        f" | reward {'-' if reward is None else format(reward, '.3f')}"
        f" | lag {values['lag/mean']:.1f}/{config.rollout.max_lag}"
        f" | len {'-' if length is None else format(length, '.0f')}"
        f" | kl {values.get('kl/engine_mean', 0):.4f}"
        f" | grad {values.get('optim/grad_norm', 0):.2f}"
        f" | {values.get('perf/tokens_per_s', 0) / 1000:.1f}k tok/s"
        f" | wait rollout {values['time/wait_rollout_s']:.2f} s"
        f" learner {values['time/wait_learner_s']:.2f} s"
    )


class WandbSink:
    """W&B behind a thread: its calls never block the loop and its failure never stops the run."""

    def __init__(self, *, mode: str, project: str, name: str, run_dir: Path, config: dict) -> None:
        self._settings = {
            "mode": mode,
            "project": project,
            "name": name,
            # The same for every part of a run that was resumed.
            "id": run_id(run_dir),
            "resume": "allow",
            "dir": str(run_dir),
            "config": config,
        }
        self._items: queue.SimpleQueue[Values | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, values: Values) -> None:
        """Queue one step's values."""
        self._items.put(values)

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Let it finish; blocks at most `timeout_s`, then leaves it behind."""
        self._items.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("W&B did not finish within %g s and was left behind", timeout_s)

    def _run(self) -> None:
        try:
            import wandb  # takes seconds: only a run that uses it pays

            try:
                settings = wandb.Settings(silent=True, console="off")
                run = wandb.init(**self._settings, settings=settings)
                run.define_metric("*", step_metric="step")
                while (values := self._items.get()) is not None:
                    run.log(values)
                run.finish()
            finally:
                wandb.teardown()  # its process must not outlive the run
        except Exception as error:  # noqa: BLE001 - a metric sink: its failure never stops the run
            logger.warning("W&B is off for the rest of this run: %s", error)


class MetricsWriter:
    """The only writer of metrics."""

    def __init__(self, files: RunFiles, *, wandb: WandbSink | None) -> None:
        self._files = files
        self._wandb = wandb
        self.recent: deque[Values] = deque(maxlen=RECENT_STEPS)
        """What was written last, oldest first."""

    def write(self, values: Values) -> None:
        """Write one flat record with its `step`; non-finite values are left out."""
        values = {"format": FORMAT, **values}
        finite = {key: value for key, value in values.items() if np.isfinite(value)}
        self.recent.append(finite)
        self._files.metrics(finite)
        if self._wandb is not None:
            self._wandb.log(finite)
