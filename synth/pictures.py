"""The figures of a factory's report: how many of what, drawn when asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rollout.report.theme import FULL, HALF, Draw, Theme, subplots

if TYPE_CHECKING:
    from synth.report import Report, StageRow

# Reasons that a figure shows apart, and bars of a histogram.
MAX_REASONS, MAX_BARS = 14, 26
# Characters of a label beside a bar.
_LABEL = 44


@dataclass(slots=True, kw_only=True, frozen=True)
class Picture:
    """A figure: its name, what it shows in words, how it is drawn."""

    name: str
    title: str
    alt: str
    draw: Draw
    is_wide: bool = True


def pictures(report: Report) -> list[Picture]:
    """The figures that a report has data for."""
    found: list[Picture] = []
    if report.stages:
        words = "; ".join(
            f"{one.name}: {one.num_in} in, {one.num_out} out" for one in report.stages
        )
        found.append(Picture(name="stages", title="Stages", alt=words, draw=_stages(report.stages)))
    reasons = Counter(f"{one.stage}: {one.reason}" for one in report.refusals).most_common()
    if reasons:
        shown = reasons[:MAX_REASONS]
        if len(reasons) > len(shown):
            shown.append(("all others", sum(count for _, count in reasons[MAX_REASONS:])))
        found.append(
            Picture(
                name="reasons",
                title="Why something was refused",
                alt="; ".join(f"{reason}: {count}" for reason, count in shown),
                draw=_across(shown),
            )
        )
    if report.tools:
        found.append(_bars("tools", "Tools of an environment", report.tools, "tools"))
    if report.calls:
        binned = _binned(report.calls)
        found.append(_bars("calls", "Calls of a task", binned, "calls of the shortest trace found"))
    if report.certificates:
        name = "calls that any agent needs at least"
        found.append(_bars("certificates", "Certificates", report.certificates, name))
    if report.pass_rates:
        found.append(_bars("pass_rates", "Pass rates", report.pass_rates, "share of episodes won"))
    return found


def _bars(name: str, title: str, counts: Mapping[str, int], label: str) -> Picture:
    words = "; ".join(f"{key}: {count}" for key, count in counts.items())
    return Picture(
        name=name, title=title, alt=f"{label}: {words}", draw=_upright(counts, label), is_wide=False
    )


def _binned(values: Sequence[int]) -> dict[str, int]:
    """How many values lie in each of a few ranges of equal width, empty ones among them."""
    lowest, highest = min(values), max(values)
    width = 1
    while (highest - lowest) // width + 1 > MAX_BARS:
        width = next(one for one in _widths() if one > width)
    first = lowest // width
    counts = Counter(value // width for value in values)
    return {
        (f"{at * width}" if width == 1 else f"{at * width}-{at * width + width - 1}"): counts[at]
        for at in range(first, highest // width + 1)
    }


def _widths() -> list[int]:
    return [step * 10**power for power in range(7) for step in (1, 2, 5)]


def _upright(counts: Mapping[str, int], label: str) -> Draw:
    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(HALF, 2.6)
        at = range(len(counts))
        axes.bar(at, list(counts.values()), width=0.8, color=theme.after)
        # Labels that would run into each other are left out.
        each = -(-sum(len(key) + 1 for key in counts) // 44)
        axes.set_xticks(list(at)[::each], list(counts)[::each], fontsize=8)
        axes.set_xlabel(label)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        return figure

    return draw


def _across(counts: Sequence[tuple[str, int]]) -> Draw:
    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(FULL, 0.6 + 0.27 * len(counts))
        labels = [name if len(name) <= _LABEL else f"{name[: _LABEL - 3]}..." for name, _ in counts]
        numbers = [count for _, count in counts]
        bars = axes.barh(range(len(counts)), numbers, color=theme.learner)
        axes.set_yticks(range(len(counts)), labels, fontsize=8.5)
        axes.invert_yaxis()
        axes.bar_label(bars, padding=3, fontsize=8)
        axes.set_xlim(0, max(numbers) * 1.1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return figure

    return draw


def _stages(stages: Sequence[StageRow]) -> Draw:
    """What went in, and how much of it came out; a stage may make several of one."""

    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(FULL, 0.7 + 0.42 * len(stages))
        at = range(len(stages))
        went = axes.barh(
            [one - 0.19 for one in at], [s.num_in for s in stages], 0.36, color=theme.before,
            label="in",
        )  # fmt: skip
        came = axes.barh(
            [one + 0.19 for one in at], [s.num_out for s in stages], 0.36, color=theme.after,
            label="out",
        )  # fmt: skip
        for bars in (went, came):
            axes.bar_label(bars, padding=3, fontsize=8)
        axes.set_yticks(at, [f"{s.name} ({s.unit})" for s in stages], fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1, *(max(s.num_in, s.num_out) for s in stages)) * 1.1)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
        return figure

    return draw
