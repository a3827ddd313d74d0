"""Did it learn: success by set before and after, reward over steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rollout.evaluate import MODES
from rollout.report.curves import binned, running_mean
from rollout.report.digest import Digest
from rollout.report.lines import Settings
from rollout.report.section import Picture, Section, Table
from rollout.report.theme import FULL, Draw, Theme, from_zero, subplots
from rollout.report.transcripts import changes
from rollout.scores import Score, score
from rollout.summary import cell

# Points that a figure as wide as the page shows apart.
MAX_POINTS = 400
# Environments with the fewest rollouts get no panel beyond these.
MAX_PANELS = 8
# The running mean covers a twentieth of the steps, but this many at least.
SMOOTHING = 20
MIN_WINDOW = 5


@dataclass(slots=True, kw_only=True, frozen=True)
class SetScore:
    """A set's scores in one mode."""

    name: str
    before: Score | None
    after: Score | None


def set_scores(digest: Digest) -> dict[str, list[SetScore]]:
    """Scores by mode, from the episodes themselves; every mode has the same sets in one order."""
    names = list(digest.settings.eval.sets)
    played = {place.set for verdicts in digest.verdicts.values() for place in verdicts}
    names = [name for name in names if name in played] + sorted(played - set(names))

    def of(label: str, name: str, mode: str) -> Score | None:
        found = [
            verdict
            for place, verdict in digest.verdicts[label].items()
            if (place.set, place.mode) == (name, mode)
        ]
        samples = 1 + max((verdict.sample for verdict in found), default=0)
        return score(found, samples=samples) if found else None

    return {
        mode: [
            SetScore(name=name, before=of("before", name, mode), after=of("after", name, mode))
            for name in names
        ]
        for mode in MODES
        if names
    }


def success_section(digest: Digest) -> Section:
    section = Section(id="success", title="Did it learn?")
    modes = set_scores(digest)
    if not modes:
        section.missing = (
            "No evaluation episode was recorded, so nothing can be said about success before and "
            "after. Evaluation is set up under eval.sets in the recipe."
        )
        return section
    gaps = [label for label, verdicts in digest.verdicts.items() if not verdicts]
    for label in gaps:
        section.words.append(f"The run has no evaluation {label} training.")
    changed = changes(digest.verdicts["before"], digest.verdicts["after"])
    rows = []
    for mode, sets in modes.items():
        for one in sets:
            change = changed.get((one.name, mode))
            counts = [str(s.count) for s in (one.before, one.after) if s is not None]
            faults = sum(s.faults for s in (one.before, one.after) if s is not None)
            rows.append(
                [
                    f"{one.name}, {mode}",
                    _cell(one.before),
                    _cell(one.after),
                    _difference(one.before, one.after),
                    "-" if change is None else f"{change.gained} / {change.lost}",
                    "-" if change is None else f"{change.p_value:.2g}",
                    " / ".join(dict.fromkeys(counts)),
                    str(faults),
                ]
            )
    head = ["set, decoding", "before", "after", "change", "better / worse", "p", "n", "faults"]
    section.tables.append(Table(head=head, rows=rows))
    words = "; ".join(f"{row[0]}: before {row[1]}, after {row[2]}" for row in rows)
    section.pictures.append(
        Picture(name="success", alt=f"Mean reward by evaluation set. {words}", draw=success(modes))
    )
    section.notes += set_notes(digest.settings, [one.name for one in next(iter(modes.values()))])
    section.notes.append(
        "Mean reward of the graded episodes of each set (the share solved, where rewards are 0 or 1) "
        "with Wilson's 95 % interval over tasks; faulted episodes are counted apart, never as zeros. No run "
        "trains on these configurations. The same tasks are played before and after: better / worse "
        "counts those whose reward (of their first sample) rose or fell, and p is how likely a split as uneven comes from chance "
        "alone (two-sided sign test). Sampled is how the policy plays while it trains; "
        "greedy takes its likeliest token, so it shows competence without slips."
    )
    return section


def set_notes(settings: Settings, names: Sequence[str]) -> list[str]:
    """Where these evaluation sets come from, as far as the recipe sets them up."""
    notes = []
    for name in names:
        if (spec := settings.eval.sets.get(name)) is None:
            continue
        level = (
            f"level {spec.level}, {'that' if spec.level == 0 else 'where 0 is that'} of training"
        )
        what = f"Set {name}: {spec.count:,} configurations of {', '.join(spec.envs)}; {level}"
        new = [env for env in spec.envs if not _is_trained_on(env, settings)]
        if new and settings.learner.steps:
            all_new = len(new) == len(spec.envs)
            what += f"; not trained on in this run{'' if all_new else ': ' + ', '.join(new)}"
        notes.append(f"{what}.")
    return notes


def _is_trained_on(env: str, settings: Settings) -> bool:
    """`env` as a set names it: `pool/env`, or `env` where there is one pool."""
    pool, _, name = env.rpartition("/")
    pools = [settings.pools[pool]] if pool in settings.pools else settings.pools.values()
    return any(not one.train or name in one.train for one in pools)


def reward_section(digest: Digest) -> Section:
    section = Section(id="reward", title="Reward over steps")
    lines = [line for line in digest.steps if math.isfinite(line.reward_all)]
    if lines:
        steps, rewards = [line.step for line in lines], [line.reward_all for line in lines]
        window = max(MIN_WINDOW, len(lines) // SMOOTHING)
        smooth = running_mean(rewards, window) if len(lines) > MIN_WINDOW else []
        each = -(-len(lines) // MAX_POINTS)
        draw = reward(
            binned(steps, each), rewards=binned(rewards, each), smooth=binned(smooth, each)
        )
        alt = f"Mean reward by optimizer step, from {rewards[0]:.2f} to {rewards[-1]:.2f}."
        section.pictures.append(Picture(name="reward", alt=alt, draw=draw))
        section.notes.append(
            "A dot is the mean reward of all rollouts with a verdict that ended since the step before"
            + (f" (a mean of {each} steps)" if each > 1 else "")
            + (f"; the line is the mean over the last {window} steps." if smooth else ".")
        )
    else:
        section.missing = "No optimizer step was recorded in metrics.jsonl."
    if lines and digest.settings.rollout.draw != "uniform":
        section.notes.append(
            "Tasks that are neither mastered nor out of reach are drawn more often (rollout.draw), so "
            "that this curve rises less than success does."
        )
    curves = digest.journal.curves
    if curves and digest.steps:
        counts = {env: sum(number for _, number in curve) for env, curve in curves.items()}
        shown = sorted(sorted(curves, key=counts.__getitem__, reverse=True)[:MAX_PANELS])
        num_parts = digest.journal.num_parts
        width = digest.steps[-1].step / num_parts
        centres = [0.5 + (part + 0.5) * width for part in range(num_parts)]
        means = {
            env: [total / number if number else math.nan for total, number in curves[env]]
            for env in shown
        }
        alt = f"Mean reward by optimizer step for each of {', '.join(shown)}."
        draw = reward_by_env(centres, means)
        section.pictures.append(Picture(name="reward_by_env", alt=alt, draw=draw))
        left_out = len(curves) - len(shown)
        section.notes.append(
            "By environment: mean reward of every rollout with a verdict, whatever became of its "
            f"group, by the step during which the group ended, in {num_parts} equal parts"
            + (f"; {left_out} environments with fewer rollouts are not shown." if left_out else ".")
        )
    elif lines:
        section.notes.append("There is no rollout log, so no curve by environment.")
    return section


def success(modes: Mapping[str, Sequence[SetScore]]) -> Draw:
    """Means with intervals, one panel a mode, one line a set: before above after."""

    def draw(theme: Theme) -> Figure:
        rows = max(len(sets) for sets in modes.values())
        figure, panels = subplots(
            FULL, 0.9 + 0.72 * rows, columns=len(modes), sharex=True, sharey=True
        )
        for axes, (mode, sets) in zip(panels, modes.items(), strict=True):
            for row, one in enumerate(sets):
                _interval(axes, row - 0.13, one.before, theme.before, 1)
                _interval(axes, row + 0.13, one.after, theme.after, -1)
            axes.set_yticks(range(len(sets)), [one.name for one in sets], color=theme.ink)
            axes.set_ylim(len(sets) - 0.5, -0.5)
            axes.set_title(mode)
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        scores = [s for sets in modes.values() for one in sets for s in (one.before, one.after)]
        lows = [s.low for s in scores if s is not None and s.low is not None]
        highs = [s.high for s in scores if s is not None and s.high is not None]
        margin = 0.05
        panels[0].set_xlim(min([0.0, *lows]) - margin, max([1.0, *highs]) + margin)
        handles = [
            panels[0].plot([], [], "o", ms=7, color=color, label=label)[0]
            for label, color in (("before", theme.before), ("after", theme.after))
        ]
        figure.legend(handles=handles, loc="outside upper right", ncols=2)
        return figure

    return draw


def _interval(axes: Axes, y: float, score: Score | None, color: str, side: int) -> None:
    """`side`: 1 puts the number above the dot, -1 below."""
    if score is None or score.mean is None or score.low is None or score.high is None:
        return
    axes.plot([score.low, score.high], [y, y], lw=4.5, color=color, alpha=0.35)
    axes.plot([score.mean], [y], "o", ms=7.5, color=color)
    axes.annotate(
        f"{score.mean:.2f}", (score.mean, y), (0, 6 * side), textcoords="offset points", ha="center",
        va="bottom" if side > 0 else "top", color=color, fontsize=8,
    )  # fmt: skip


def reward(steps: Sequence[float], rewards: Sequence[float], smooth: Sequence[float]) -> Draw:
    """Reward of what ended before each step, and its running mean."""

    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(FULL, 2.9)
        axes.plot(steps, rewards, "o", ms=3.8, mew=0, color=theme.after, alpha=0.5, label="a step")
        if smooth:
            axes.plot(steps, smooth, lw=2.2, color=theme.after, label="running mean")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("mean reward")
        axes.set_xlim(0, max(steps) + 1)
        from_zero(axes, [*rewards, *smooth])
        axes.grid(axis="y")
        axes.legend(loc="lower right", ncols=2)
        return figure

    return draw


def reward_by_env(steps: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Draw:
    """A panel for each environment, the others behind it. NaN where nothing ended."""

    def draw(theme: Theme) -> Figure:
        columns = len(curves) if len(curves) <= 5 else 4
        rows = -(-len(curves) // columns)
        figure, panels = subplots(
            FULL, 0.5 + 1.75 * rows, rows=rows, columns=columns, sharex=True, sharey=True
        )
        for index, (axes, env) in enumerate(zip(panels, curves, strict=False)):
            for other in curves:
                if other != env:
                    axes.plot(*_there(steps, curves[other]), lw=1, color=theme.grid)
            axes.plot(*_there(steps, curves[env]), "o-", ms=2.8, lw=1.8, color=theme.after)
            axes.set_title(env, fontsize=9)
            axes.grid(axis="y")
            if index >= len(curves) - columns:
                axes.set_xlabel("optimizer step")
                axes.tick_params(axis="x", labelbottom=True)
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        panels[0].set_xlim(0, steps[-1] + steps[0])
        from_zero(panels[0], [value for curve in curves.values() for value in curve])
        figure.supylabel("mean reward", fontsize=9, color=theme.muted)
        return figure

    return draw


def _there(
    steps: Sequence[float], values: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """The points that have a value, so that a line joins them over the gaps."""
    points = [
        (step, value) for step, value in zip(steps, values, strict=True) if np.isfinite(value)
    ]
    return [step for step, _ in points], [value for _, value in points]


def _cell(one: Score | None) -> str:
    return "-" if one is None else cell(one)


def _difference(before: Score | None, after: Score | None) -> str:
    if before is None or after is None or before.mean is None or after.mean is None:
        return "-"
    return f"{after.mean - before.mean:+.3f}"
