"""How old was what the run trained on, and where the time of a step went."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rollout.report.curves import binned
from rollout.report.digest import Digest
from rollout.report.section import Picture, Section, Table, share
from rollout.report.theme import FULL, HALF, Draw, Theme, subplots

# Bars that a figure as wide as the page shows apart.
MAX_BARS = 90


def lag_section(digest: Digest) -> Section:
    section = Section(id="lag", title="How old was what it trained on?")
    lags, bound = digest.journal.lags, digest.settings.rollout.max_lag
    total = lags.total()
    if not total:
        section.missing = "No rollout was trained on."
        return section
    counts = {one: lags[one] for one in sorted(lags)}
    words = ", ".join(f"{number:,} at lag {one}" for one, number in counts.items())
    mixed = digest.journal.num_mixed
    section.words.append(
        f"{total:,} trained rollouts: {words}. The largest lag is {max(lags)}, the bound {bound}. "
        f"{share(mixed / total)} of them ({mixed:,}) were sampled by more than one version of the "
        "weights: new weights arrived while they played."
    )
    section.pictures.append(
        Picture(
            name="lag",
            alt=f"Trained rollouts by lag: {words}; bound {bound}.",
            draw=lag_counts(counts, bound),
            is_wide=False,
        )
    )
    section.notes.append(
        "Lag: how many versions the weights had moved on when a rollout was trained on, counted from "
        "the oldest of its trained tokens."
    )
    return section


def step_section(digest: Digest) -> Section:
    section = Section(id="steps", title="Where did a step's time go?")
    lines = [line for line in digest.steps if math.isfinite(line.step_s)]
    if not lines:
        section.missing = "No optimizer step was recorded in metrics.jsonl."
        return section
    wait = [_or_zero(line.wait_rollout_s) for line in lines]
    train = [_or_zero(line.train_s) for line in lines]
    other = [max(0.0, line.step_s - w - t) for line, w, t in zip(lines, wait, train, strict=True)]
    total = sum(line.step_s for line in lines)
    parts = [("waiting for rollouts", wait), ("training", train), ("other", other)]
    section.tables.append(
        Table(
            head=["", "total", "share", "mean of a step"],
            rows=[
                [name, f"{sum(s):,.1f} s", share(sum(s) / total), f"{sum(s) / len(s):.2f} s"]
                for name, s in parts
            ]
            + [["all", f"{total:,.1f} s", share(1.0), f"{total / len(lines):.2f} s"]],
        )
    )
    each = -(-len(lines) // MAX_BARS)
    draw = step_time(
        binned([line.step for line in lines], each),
        wait=binned(wait, each),
        train=binned(train, each),
        other=binned(other, each),
    )
    words = ", ".join(f"{name} {share(sum(s) / total)}" for name, s in parts)
    section.pictures.append(Picture(name="steps", alt=f"Seconds of each step: {words}.", draw=draw))
    held_s = sum(_or_zero(line.wait_learner_s) for line in lines)
    section.notes.append(
        "Waiting for rollouts: no batch was ready. Training: forward, backward and optimizer. Other: "
        "publishing the weights, checkpoints, and hand-over between the two."
        + (f" A bar is the mean of {each} steps." if each > 1 else "")
        + f" Besides, generation was held back for {held_s:,.1f} s ({share(held_s / total)}) because "
        "every slot was taken: starting more would have passed the bound on lag. Only the start of "
        "rollouts is held back: those already begun went on, so that the engines may have computed "
        "all the while."
    )
    return section


def lag_counts(counts: Mapping[int, int], bound: int) -> Draw:
    """Trained rollouts by lag; nothing may lie right of the bound."""

    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(HALF, 2.7)
        total = sum(counts.values())
        lags = range(max(bound, *counts) + 1)
        shares = [counts.get(one, 0) / total for one in lags]
        bars = axes.bar(lags, shares, width=0.62, color=theme.after)
        if len(lags) <= 12:
            axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=2, fontsize=8)
        axes.axvline(bound + 0.5, color=theme.bad, lw=1.4, ls=(0, (4, 3)))
        axes.annotate(
            f"bound: {bound}", (bound + 0.5, 1), (4, -4), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", color=theme.bad, fontsize=8.5,
        )  # fmt: skip
        axes.set_xlim(-0.6, max(lags) + 1.25)
        axes.set_ylim(0, max(shares) * 1.15)
        if len(lags) <= 12:
            axes.set_xticks(lags)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("lag, in versions")
        return figure

    return draw


def step_time(
    steps: Sequence[float], *, wait: Sequence[float], train: Sequence[float], other: Sequence[float]
) -> Draw:
    """Seconds of each step (or of the mean of several), by what they were spent on."""

    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(FULL, 2.6)
        width = 0.84 * (steps[1] - steps[0] if len(steps) > 1 else 1.0)
        bottom = np.zeros(len(steps))
        parts = [
            ("waiting for rollouts", wait, theme.idle),
            ("training", train, theme.learner),
            ("other", other, theme.muted),
        ]
        for name, seconds, color in parts:
            axes.bar(steps, seconds, width, bottom=bottom, color=color, label=name)
            bottom = bottom + np.asarray(seconds)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("seconds")
        axes.set_xlim(steps[0] - width, steps[-1] + width)
        axes.grid(axis="y")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
        return figure

    return draw


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
