"""`python launch.py bench overlap`: the recipe as it is, and again generating and training in turn.

Both are whole runs with real processes, one after the other, on the same tasks. The bound of a step is
what its busiest half needs: with perfect overlap a step takes as long as the engines compute, or as the
learner does, whichever is more. The bound is a mean over steps; steps differ, and their mean is printed
beside their median.
"""

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rollout import audit
from rollout.bench import runs
from rollout.bench.runs import WARMUP_STEPS
from rollout.metrics import RECENT_STEPS, Values


@dataclass(slots=True, kw_only=True, frozen=True)
class Pace:
    """What one run came to, over the steps after the first `WARMUP_STEPS`."""

    step_s: float
    """Median."""
    mean_step_s: float
    bound_s: float
    """Seconds a step that engines or learner computed, the greater of the two."""
    both: float
    """Share of the time in which engines and learner computed at once."""
    tokens_per_s: float
    lag_mean: float
    lag_max: int
    reward: float
    """Mean of the last `RECENT_STEPS` steps."""


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    parser = runs.make_parser("overlap", __doc__)
    runs.add_steps(parser)
    options = parser.parse_args(arguments)
    runs.check_steps(options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch).absolute()
        paces = {
            name: _run(folder / name, settings)
            for name, settings in runs_of(options.settings, steps=options.steps).items()
        }
    _print(paces)
    if options.json:
        sys.stdout.write(json.dumps(summary(paces)) + "\n")
    return 0


def runs_of(settings: list[str], *, steps: int) -> dict[str, list[str]]:
    """The settings of both runs, which are the same but for the bound on lag."""
    extras = {"async": [], "sync": ["rollout.max_lag=0"]}
    last = [*runs.BARE, f"learner.steps={steps}"]
    return {name: [*settings, *extra, *last] for name, extra in extras.items()}


def measure(run_dir: Path) -> Pace:
    """The pace of a finished run. Raises audit.AuditError for one that did not train to the end."""
    lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    steps = [msgspec.json.decode(line, type=Values) for line in lines]
    share = audit.busy_share(run_dir, after_step=WARMUP_STEPS)
    counted = steps[WARMUP_STEPS:]

    def mean(key: str) -> float:
        return statistics.fmean(values[key] for values in counted)

    return Pace(
        step_s=statistics.median(values["time/step_s"] for values in counted),
        mean_step_s=mean("time/step_s"),
        bound_s=max(share.engine, share.learner) * share.wall_s / len(counted),
        both=share.both,
        tokens_per_s=mean("perf/tokens_per_s"),
        lag_mean=mean("lag/mean"),
        lag_max=max(int(values["lag/max"]) for values in steps),
        reward=statistics.fmean(values["reward/all_mean"] for values in steps[-RECENT_STEPS:]),
    )


def _run(run_dir: Path, settings: list[str]) -> Pace:
    sys.stderr.write(f"{run_dir.name}: {settings[-1]}\n")
    runs.play(run_dir, settings)
    return measure(run_dir)


def _print(paces: dict[str, Pace]) -> None:
    lines = [
        f"{'':<6} {'step':>7} {'mean':>7} {'bound':>7} {'both busy':>9} {'tok/s':>7} {'lag':>9}"
        f" {'reward':>7}"
    ]
    for name, pace in paces.items():
        lines.append(
            f"{name:<6} {pace.step_s:>6.2f}s {pace.mean_step_s:>6.2f}s {pace.bound_s:>6.2f}s"
            f" {pace.both:>9.2f} {pace.tokens_per_s:>7.0f} {pace.lag_mean:>4.1f}/{pace.lag_max:<4d}"
            f" {pace.reward:>7.3f}"
        )
    ratios = summary(paces)
    lines.append(
        f"asynchronous is {ratios['speedup']:.2f} x synchronous; its median step takes "
        f"{ratios['step_over_bound']:.2f} x its bound, the mean {ratios['mean_step_over_bound']:.2f} x"
    )
    sys.stdout.write("\n".join(lines) + "\n")


def summary(paces: dict[str, Pace]) -> dict[str, Any]:
    """Flat numbers for a machine. The speed-up is that of the mean steps."""
    ours, turns = paces["async"], paces["sync"]
    return {
        "benchmark": "overlap",
        "speedup": turns.mean_step_s / ours.mean_step_s,
        "step_over_bound": ours.step_s / ours.bound_s,
        "mean_step_over_bound": ours.mean_step_s / ours.bound_s,
        "both_busy": ours.both,
        "tokens_per_s": ours.tokens_per_s,
        "lag_mean": ours.lag_mean,
        "lag_max": ours.lag_max,
        "reward": {"async": ours.reward, "sync": turns.reward},
    }
