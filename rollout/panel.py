"""What is drawn below the log lines of a run: how far it is, how it does, who waits for whom."""

import statistics
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rollout.metrics import Values
from rollout.status import Status

# Below this a bar says nothing.
_MIN_BAR = 8


@dataclass(slots=True, frozen=True, kw_only=True)
class Moment:
    """A run as the display knows it; a new one replaces it whole."""

    status: Status
    recent: tuple[Values, ...]
    """Values of the last steps, oldest first."""
    max_lag: int
    phase_s: float
    """Since the phase began."""


def draw(moment: Moment | None, doing: str, elapsed_s: float) -> RenderableType:
    """A few lines, as narrow as the terminal is; `doing` where nothing more is known."""
    if moment is None:
        return Group(_line(f"{doing}  {_clock(elapsed_s)}"))
    status = moment.status
    if (evaluation := status.evaluation) is not None:
        left_s = None
        if evaluation.done:
            left_s = moment.phase_s / evaluation.done * (evaluation.total - evaluation.done)
        return _bar(status.phase, evaluation.done, evaluation.total, elapsed_s, left_s)
    doing = f"{status.phase}, paused" if status.is_paused else status.phase
    bar = _bar(doing, status.step, status.steps, elapsed_s, _left_s(moment))
    return Group(bar, *_lines(moment)) if moment.recent else bar


def _left_s(moment: Moment) -> float | None:
    """Until the last step, at the pace of the last ones."""
    if not moment.recent:
        return None
    mean_s = statistics.fmean(values["time/step_s"] for values in moment.recent)
    return mean_s * (moment.status.steps - moment.status.step)


def _bar(name: str, done: int, total: int, elapsed_s: float, left_s: float | None) -> Table:
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(ratio=1, min_width=_MIN_BAR)
    grid.add_column(no_wrap=True, overflow="ellipsis", justify="right")
    grid.add_column(no_wrap=True, overflow="ellipsis", justify="right")
    left = "" if left_s is None else f", {_clock(left_s)} left"
    bar = ProgressBar(total=max(total, 1), completed=done)
    grid.add_row(Text(name, style="bold"), bar, f"{done}/{total}", f"{_clock(elapsed_s)}{left}")
    return grid


def _lines(moment: Moment) -> list[Text]:
    def mean(key: str) -> str:
        known = [values[key] for values in moment.recent if key in values]
        return f"{statistics.fmean(known):.2f}" if known else "-"

    last = moment.recent[-1]
    tokens = [values.get("perf/tokens_per_s", 0) for values in moment.recent]
    return [
        _line(
            f"reward {mean('reward/all_mean')} (mean of {len(moment.recent)} steps)"
            f"   lag {last.get('lag/mean', 0):.1f} mean, {last.get('lag/max', 0):.0f} max,"
            f" {moment.max_lag} bound   {statistics.fmean(tokens) / 1000:.1f}k tokens/s"
        ),
        _line(
            f"per step: generation waits for learner {mean('time/wait_learner_s')} s,"
            f" learner waits for rollouts {mean('time/wait_rollout_s')} s"
        ),
    ]


def _line(text: str) -> Text:
    return Text(text, style="dim", no_wrap=True, overflow="ellipsis")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
