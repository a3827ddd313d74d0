"""`python launch.py bench learning`: what the recipe teaches, as the mean of several seeds.

A seed chooses the tasks, the sampled tokens and the evaluation configurations. The change of one seed
is taken task by task (paired) with a 95 % interval over its tasks; the change of all is the mean over
seeds with a 95 % interval of Student's t over seeds, which three seeds make wide.
"""

import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from configs.load import ConfigError
from rollout.bench import runs
from rollout.summary import BeforeAfter, Difference, Summary, interval_text

SEEDS = "0,1,2"

# Two-sided 95 % of Student's t, by degrees of freedom from 1.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    parser = runs.make_parser("learning", __doc__)
    parser.add_argument("--seeds", default=SEEDS, help=f"of the runs ({SEEDS})")
    options = parser.parse_args(arguments)
    seeds = _seeds(options.seeds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch).absolute()
        summaries = [_run(folder / f"seed-{seed}", options.settings, seed) for seed in seeds]
    sets = means(summaries)
    _print(sets)
    if options.json:
        walls = [summary.wall_s for summary in summaries]
        result = {"benchmark": "learning", "seeds": seeds, "wall_s": walls, "sets": sets}
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def means(summaries: Sequence[Summary]) -> dict[str, dict[str, dict[str, Any]]]:
    """`{set: {mode: numbers}}` of the runs, for the sets that all of them evaluated twice."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name, modes in summaries[0].eval.items():
        for mode in modes:
            each = [summary.eval[name][mode] for summary in summaries]
            changes = [one.difference for one in each if one.difference is not None]
            if len(changes) == len(summaries):
                found.setdefault(name, {})[mode] = _mean(each, changes)
    return found


def over_seeds(values: Sequence[float]) -> Difference:
    """Mean of one value a seed, with a 95 % interval of Student's t."""
    mean = statistics.fmean(values)
    half = _T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(mean=mean, low=mean - half, high=mean + half, count=len(values))


def _mean(each: Sequence[BeforeAfter], changes: Sequence[Difference]) -> dict[str, Any]:
    return {
        "before": [one.before.mean for one in each if one.before],
        "after": [one.after.mean for one in each if one.after],
        "change": msgspec.to_builtins(over_seeds([change.mean for change in changes])),
        "by_seed": msgspec.to_builtins(changes),
    }


def _seeds(text: str) -> list[int]:
    most = len(_T95) + 1
    words = text.split(",")
    # As numbers: 0 and 00 would be the same run.
    seeds = list(dict.fromkeys(int(word) for word in words if word.isdecimal()))
    if not 2 <= len(seeds) <= most or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds {text}: name 2 to {most} different numbers, such as {SEEDS}")
    return seeds


def _run(run_dir: Path, settings: list[str], seed: int) -> Summary:
    sys.stderr.write(f"{run_dir.name}\n")
    runs.play(run_dir, [*settings, f"run.seed={seed}", "logging.wandb=off"])
    return msgspec.json.decode((run_dir / "summary.json").read_bytes(), type=Summary)


def _print(sets: dict[str, dict[str, dict[str, Any]]]) -> None:
    shown = Table(box=None, pad_edge=False)
    for head in ("set", "mode", "before", "after", "change, mean of seeds", "seed by seed, paired"):
        shown.add_column(head)
    for name, modes in sets.items():
        for mode, numbers in modes.items():
            shown.add_row(
                name,
                mode,
                f"{statistics.fmean(numbers['before']):.3f}",
                f"{statistics.fmean(numbers['after']):.3f}",
                _text(numbers["change"]),
                "  ".join(_text(change) for change in numbers["by_seed"]),
            )
    # Wide enough for every seed: a wrapped row is no row.
    Console(file=sys.stdout, width=300).print(shown)


def _text(change: dict[str, float]) -> str:
    return f"{change['mean']:+.3f} {interval_text(change['low'], change['high'], sign='+')}"
