"""What a run comes to: `summary.json`, and the table a person reads at the end."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import msgspec

from rollout.evaluate import Z95, Place, Score, place
from rollout.ledger import LedgerCounts
from rollout.types import FORMAT

Scores = dict[str, dict[str, Score]]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Mean of after minus before over the tasks graded both times, with a 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


class BeforeAfter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A set's score with the initial and with the final weights."""

    before: Score | None = None
    after: Score | None = None
    difference: Difference | None = None
    """None with fewer than two pairs."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`run_dir/summary.json`."""

    format: int = FORMAT
    eval: dict[str, dict[str, BeforeAfter]]
    """`{set: {sampled | greedy: {before, after}}}`."""
    steps: int
    wall_s: float
    lag_max: int
    ledger: LedgerCounts
    ledger_balanced: bool
    """Whether the counts recomputed from the files of the run equal the live ones."""
    ledger_error: str = ""


class _Verdict(msgspec.Struct, frozen=True):
    """What pairing needs of a line of the evaluation log."""

    group_id: str
    reward: float | None


def differences(run_dir: Path) -> dict[tuple[str, str], Difference]:
    """`{(set, mode): difference}`, task by task, from the two evaluation logs of a run."""
    before, after = (_verdicts(run_dir / f"rollouts/eval_{x}.jsonl") for x in ("before", "after"))
    gains: dict[tuple[str, str], list[float]] = {}
    for where in before.keys() & after.keys():
        gains.setdefault((where.set, where.mode), []).append(after[where] - before[where])
    return {key: _difference(values) for key, values in gains.items() if len(values) > 1}


def _verdicts(path: Path) -> dict[Place, float]:
    """Reward by place in the evaluation; a fault has none."""
    if not path.exists():
        return {}
    with path.open("rb") as lines:
        verdicts = [msgspec.json.decode(line, type=_Verdict) for line in lines]
    return {place(v.group_id): v.reward for v in verdicts if v.reward is not None}


def _difference(gains: list[float]) -> Difference:
    mean = statistics.fmean(gains)
    half = Z95 * statistics.stdev(gains) / math.sqrt(len(gains))
    return Difference(mean=mean, low=mean - half, high=mean + half, count=len(gains))


def pair(
    before: Scores, after: Scores, changes: Mapping[tuple[str, str], Difference]
) -> dict[str, dict[str, BeforeAfter]]:
    """Put the scores of each set and mode side by side, with their difference task by task."""
    names = {(name, mode) for scores in (before, after) for name in scores for mode in scores[name]}
    paired: dict[str, dict[str, BeforeAfter]] = {}
    for name, mode in sorted(names):
        paired.setdefault(name, {})[mode] = BeforeAfter(
            before=before.get(name, {}).get(mode),
            after=after.get(name, {}).get(mode),
            difference=changes.get((name, mode)),
        )
    return paired


HEAD = ("set", "mode", "before", "after", "change, paired", "n")


def rows(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> list[tuple[str, ...]]:
    """The scores as cells under `HEAD`: means with their 95 % intervals."""
    cells = []
    for name, modes in evaluation.items():
        for mode, scores in modes.items():
            count = max(s.count for s in (scores.before, scores.after) if s is not None)
            change = "-"
            if (gain := scores.difference) is not None:
                # Equal gains say nothing about the spread of others.
                has_spread = gain.low < gain.high
                interval = f" {_interval(gain.low, gain.high, sign='+')}" if has_spread else ""
                change = f"{gain.mean:+.3f}{interval}"
            before, after = cell(scores.before), cell(scores.after)
            cells.append((name, mode, before, after, change, str(count)))
    return cells


def table(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> list[str]:
    """The same as lines of plain text."""
    if not evaluation:
        return []
    cells = [HEAD, *rows(evaluation)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def cell(score: Score | None) -> str:
    """A score in words: mean and interval."""
    if score is None or score.mean is None or score.low is None or score.high is None:
        return "-"
    return f"{score.mean:.3f} {_interval(score.low, score.high)}"


def _interval(low: float, high: float, *, sign: str = "") -> str:
    """Without the leading zeros, so that a row fits 80 columns."""
    ends = (f"{end:{sign}.2f}".replace("0.", ".", 1) for end in (low, high))
    return f"[{', '.join(ends)}]"
