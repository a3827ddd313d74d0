"""What a run comes to: `summary.json`, and the table a person reads at the end."""

import msgspec

from rollout.evaluate import Score
from rollout.ledger import LedgerCounts
from rollout.types import FORMAT

Scores = dict[str, dict[str, Score]]


class BeforeAfter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A set's score with the initial and with the final weights."""

    before: Score | None = None
    after: Score | None = None


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


def pair(before: Scores, after: Scores) -> dict[str, dict[str, BeforeAfter]]:
    """Put the scores of each set and mode side by side."""
    names = {(name, mode) for scores in (before, after) for name in scores for mode in scores[name]}
    paired: dict[str, dict[str, BeforeAfter]] = {}
    for name, mode in sorted(names):
        paired.setdefault(name, {})[mode] = BeforeAfter(
            before=before.get(name, {}).get(mode), after=after.get(name, {}).get(mode)
        )
    return paired


def table(evaluation: dict[str, dict[str, BeforeAfter]]) -> list[str]:
    """The scores as lines: mean reward with its 95 % interval."""
    if not evaluation:
        return []
    lines = [f"{'set':<12} {'decoding':<9} {'before':<22} {'after':<22} n"]
    for name, modes in evaluation.items():
        for mode, scores in modes.items():
            count = max(s.count for s in (scores.before, scores.after) if s is not None)
            cells = f"{cell(scores.before):<22} {cell(scores.after):<22}"
            lines.append(f"{name:<12} {mode:<9} {cells} {count}")
    return lines


def cell(score: Score | None) -> str:
    """A score in words: mean and interval."""
    if score is None or score.mean is None or score.low is None or score.high is None:
        return "-"
    return f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"
