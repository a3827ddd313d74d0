"""Who worked when: engines, learner and environments during the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from rollout.audit import LEARNER
from rollout.report.curves import occupancy
from rollout.report.digest import Digest
from rollout.report.section import Picture, Section, duration, share
from rollout.report.theme import FULL, HALF, Draw, Theme, subplots

# Parts of the run that the timeline shows apart.
MAX_PARTS = 470
# More engines than this share a lane.
MAX_LANES = 6
# Of a small letter, in widths of the timeline.
LETTER_WIDTH = 0.008


@dataclass(slots=True, kw_only=True, frozen=True)
class Lane:
    """How busy somebody was in each of N equal parts of the run, 0..1."""

    name: str
    is_learner: bool
    busy: Sequence[float]


def busy_section(digest: Digest) -> Section:
    section = Section(id="busy", title="Who worked when?")
    shares = digest.timeline.shares()
    if shares is None or not digest.timeline.busy:
        section.missing = "The run has no training phase with busy intervals in events.jsonl."
        return section
    journal = digest.journal
    section.words.append(
        f"Of {duration(shares.wall_s)} of training the engines computed {share(shares.engine)}, the "
        f"learner {share(shares.learner)}, and both at once {share(shares.both)}."
    )
    section.notes.append(
        "From the busy intervals of events.jsonl within the training phase; the engines count as one "
        "that is busy while any of them computes. Dotted lines: training begins, training ends."
    )
    turns_s = journal.env_s + journal.generate_s
    env = journal.env_s / turns_s if turns_s else None
    if env is None:
        section.words.append(
            "No turn of a training rollout is in the log: nothing on environments."
        )
    else:
        section.words.append(
            f"Environments: a rollout spent {share(env)} of its time waiting for an environment's "
            f"answer and {share(1 - env)} waiting for the engine's; on average "
            f"{journal.env_s / shares.wall_s:.1f} environment calls were under way at once."
        )
        section.notes.append(
            f"Environments' share: env_s summed over all {journal.num_turns:,} turns of all training "
            f"rollouts ({journal.env_s:,.1f} s) over the sum of env_s and generate_s "
            f"({turns_s:,.1f} s). Both are measured where the rollout plays, so they include waiting "
            "in line, and rollouts that play side by side each count. Calls under way: the same env_s "
            "over the length of the training phase."
        )
    draw = overlap(engine=shares.engine, learner=shares.learner, both=shares.both, env=env)
    alt = " ".join(section.words)
    section.pictures.append(Picture(name="overlap", alt=alt, draw=draw, is_wide=False))
    section.pictures.append(_timeline_picture(digest))
    return section


def _timeline_picture(digest: Digest) -> Picture:
    log = digest.timeline
    begin, end = log.first_s, log.last_s
    engines = sorted(who for who in log.busy if who != LEARNER)
    busy = {who: occupancy(log.busy[who], begin, end, MAX_PARTS) for who in log.busy}
    lanes = [Lane(name=who, is_learner=False, busy=busy[who]) for who in engines]
    if len(engines) > MAX_LANES:
        mean = [sum(parts) / len(engines) for parts in zip(*map(busy.get, engines), strict=True)]
        lanes = [Lane(name=f"{len(engines)} engines", is_learner=False, busy=mean)]
    if LEARNER in busy:
        lanes.append(Lane(name=LEARNER, is_learner=True, busy=busy[LEARNER]))
    assert log.training is not None
    trained = (log.training[0] - begin, log.training[1] - begin)
    phases = {
        "evaluation before": (0.0, trained[0]),
        "training": trained,
        "evaluation after": (trained[1], end - begin),
    }
    phases = {name: (a, b) for name, (a, b) in phases.items() if b > a}
    return Picture(
        name="timeline",
        alt=f"Busy share of {', '.join(lane.name for lane in lanes)} over the run.",
        draw=timeline(lanes, wall_s=end - begin, phases=phases),
    )


def overlap(*, engine: float, learner: float, both: float, env: float | None) -> Draw:
    """Shares of the training phase, and of a rollout's time; `env` None when no turn was played."""

    def draw(theme: Theme) -> Figure:
        bars = [
            (
                "the training phase",
                [
                    ("engine alone", engine - both, theme.engine),
                    ("both at once", both, theme.both),
                    ("learner alone", learner - both, theme.learner),
                    ("neither", 1 - engine - learner + both, theme.idle),
                ],
            )
        ]
        if env is not None:
            waits = [("engine", 1 - env, theme.engine), ("environment", env, theme.env)]
            bars.append(("what a rollout waits for", waits))
        figure, panels = subplots(HALF, 2.7, rows=2)
        for axes, (title, parts) in zip(panels, bars, strict=False):
            left = 0.0
            for name, part, color in parts:
                axes.barh(0, part, left=left, height=0.6, color=color, label=f"{name} {part:.0%}")
                left += part
            axes.set_xlim(0, 1)
            axes.set_ylim(-0.45, 0.4)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
            axes.legend(
                loc="upper left", bbox_to_anchor=(-0.015, 0.02), ncols=2, fontsize=8.2,
                labelcolor=theme.ink,
            )  # fmt: skip
        for axes in panels[len(bars) :]:
            axes.set_axis_off()
        return figure

    return draw


def timeline(
    lanes: Sequence[Lane], *, wall_s: float, phases: Mapping[str, tuple[float, float]]
) -> Draw:
    """Who computed when; `phases` as seconds since the start."""

    def draw(theme: Theme) -> Figure:
        figure, (axes,) = subplots(FULL, 0.95 + 0.5 * len(lanes))
        unit, name = (60.0, "minutes") if wall_s > 600 else (1.0, "seconds")
        for row, lane in enumerate(lanes):
            color = theme.learner if lane.is_learner else theme.engine
            edges = np.linspace(0, wall_s / unit, len(lane.busy) + 1)
            top = row + 0.38 - 0.76 * np.asarray(lane.busy)
            axes.fill_between(edges[[0, -1]], row + 0.38, row - 0.38, color=theme.idle, lw=0)
            axes.stairs(top, edges, baseline=row + 0.38, fill=True, color=color, lw=0)
        axes.set_yticks(range(len(lanes)), [lane.name for lane in lanes], color=theme.ink)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(lanes) - 0.5, -0.95)
        axes.set_xlim(0, wall_s / unit)
        for phase, (begin, end) in phases.items():
            axes.axvline(begin / unit, color=theme.muted, lw=0.8, ls=(0, (2, 2)))
            if (end - begin) / wall_s < len(phase) * LETTER_WIDTH:
                continue
            axes.text(
                (begin + end) / 2 / unit, -0.72, phase, ha="center", va="center", fontsize=8.2,
                color=theme.muted,
            )  # fmt: skip
        axes.set_xlabel(f"{name} since the first episode")
        axes.spines["left"].set_visible(False)
        return figure

    return draw
