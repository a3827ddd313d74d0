"""What a run comes to: `summary.json`, and the table a person reads at the end."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from rollout.evaluate import Place, place
from rollout.ledger import LedgerCounts
from rollout.scores import Z95, Estimate, Score, Scores
from rollout.types import FORMAT


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
    startup_s: dict[str, float] = {}
    """Seconds by part before that."""
    lag_max: int
    ledger: LedgerCounts
    ledger_balanced: bool
    """Whether the counts recomputed from the files of the run equal the live ones."""
    ledger_error: str = ""


class _Verdict(msgspec.Struct, frozen=True):
    """What pairing needs of a line of the evaluation log."""

    group_id: str
    task_id: str
    reward: float | None


def differences(run_dir: Path) -> dict[tuple[str, str], Difference]:
    """`{(set, mode): difference}`, task by task, from the two evaluation logs of a run.

    A run that was resumed with other sets may have other tasks in their places: those are no pairs.
    """
    before, after = (_verdicts(run_dir / f"rollouts/eval_{x}.jsonl") for x in ("before", "after"))
    gains: dict[tuple[str, str], list[float]] = {}
    for where, task_id in before.keys() & after.keys():
        gain = after[where, task_id] - before[where, task_id]
        gains.setdefault((where.set, where.mode), []).append(gain)
    return {key: _difference(values) for key, values in gains.items() if len(values) > 1}


def _verdicts(path: Path) -> dict[tuple[Place, str], float]:
    """Mean reward of a task's samples by its place in the evaluation and its id; a fault has none."""
    if not path.exists():
        return {}
    rewards: dict[tuple[Place, str], list[float]] = {}
    with path.open("rb") as lines:
        for line in lines:
            verdict = msgspec.json.decode(line, type=_Verdict)
            if verdict.reward is not None:
                key = place(verdict.group_id), verdict.task_id
                rewards.setdefault(key, []).append(verdict.reward)
    return {where: statistics.fmean(values) for where, values in rewards.items()}


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


def head(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> tuple[str, ...]:
    """What the cells of `rows` are; with k samples of a task also pass@k and pass^k."""
    most, is_trained = _most_samples(evaluation), _is_trained(evaluation)
    averages = ("before", "after", "change, paired") if is_trained else (f"avg@{most}",)
    passes = (f"pass@{most}", f"pass^{most}") if most > 1 else ()
    return ("set", "mode", *averages, *passes, "n")


def rows(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> list[tuple[str, ...]]:
    """The scores as cells under `head`: means with their 95 % intervals."""
    most, is_trained = _most_samples(evaluation), _is_trained(evaluation)
    cells = []
    for name, modes in evaluation.items():
        for mode, scores in modes.items():
            known = [s for s in (scores.before, scores.after) if s is not None]
            row = [name, mode, cell(scores.before)]
            if is_trained:
                row += [cell(scores.after), _change(scores.difference)]
            if most > 1:
                row.append(_pass_cell([s.pass_at.get(most) for s in known]))
                row.append(_pass_cell([s.pass_all.get(most) for s in known]))
            row.append(_count(max(known, key=lambda score: score.count)))
            cells.append(tuple(row))
    return cells


def table(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> list[str]:
    """The same as lines of plain text."""
    if not evaluation:
        return []
    cells = [head(evaluation), *rows(evaluation)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _most_samples(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> int:
    """k: one number for all that is sampled."""
    every = [one for modes in evaluation.values() for one in modes.values()]
    return max(
        (score.samples for one in every for score in (one.before, one.after) if score is not None),
        default=1,
    )


def _is_trained(evaluation: Mapping[str, Mapping[str, BeforeAfter]]) -> bool:
    """Whether there is anything after training."""
    return any(one.after is not None for modes in evaluation.values() for one in modes.values())


def _change(gain: Difference | None) -> str:
    if gain is None:
        return "-"
    # Equal gains say nothing about the spread of others.
    interval = f" {interval_text(gain.low, gain.high, sign='+')}" if gain.low < gain.high else ""
    return f"{gain.mean:+.3f}{interval}"


def _pass_cell(estimates: Sequence[Estimate | None]) -> str:
    """Before and after where there are both; the interval where there is one."""
    known = [one for one in estimates if one is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return f"{known[0].mean:.3f} {interval_text(known[0].low, known[0].high)}"
    return " -> ".join(f"{one.mean:.3f}" for one in known)


def _count(score: Score) -> str:
    """Graded episodes; as tasks x samples where every sample was graded."""
    is_whole = score.samples > 1 and score.count == score.tasks * score.samples
    return f"{score.tasks} x {score.samples}" if is_whole else str(score.count)


def cell(score: Score | None) -> str:
    """A score in words: mean and interval."""
    if score is None or score.mean is None or score.low is None or score.high is None:
        return "-"
    return f"{score.mean:.3f} {interval_text(score.low, score.high)}"


def interval_text(low: float, high: float, *, sign: str = "") -> str:
    """Without the leading zeros, so that a row fits 80 columns."""
    ends = (f"{end:{sign}.2f}".replace("0.", ".", 1) for end in (low, high))
    return f"[{', '.join(ends)}]"
