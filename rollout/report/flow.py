"""What became of every group: counts, and a figure with bands as wide as the groups that took a way.

The states that a group passes stand from left to right, the ends in a last column. What leaves the
main way leaves it below, so that no band crosses a state that it does not enter.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from rollout.ledger import ENDS, GroupState
from rollout.report.digest import Digest
from rollout.report.section import Picture, Section, Table, share
from rollout.report.theme import FULL, Draw, Theme

CHAIN = (GroupState.PENDING, GroupState.RUNNING, GroupState.SCORED, GroupState.QUEUED)

# Groups that have not ended, shown as one more end.
LIVE = "in progress"

Way = tuple[str, str]
Moves = Mapping[tuple[GroupState | None, GroupState], int]

# In units of all groups drawn: the least width of what exists, and the room between two ends.
_THINNEST = 0.008
_GAP = 0.075
# In units of the room between two columns.
_NODE = 0.035


@dataclass(slots=True, kw_only=True, frozen=True)
class Node:
    """A state: `number` groups entered it. Column, top and height in the units of the figure."""

    name: str
    number: int
    column: int
    top: float
    height: float


@dataclass(slots=True, kw_only=True, frozen=True)
class Band:
    """The groups that went from one state to another; the tops of its two ends."""

    old: str
    new: str
    top_left: float
    top_right: float
    width: float


def ledger_section(digest: Digest) -> Section:
    section = Section(id="ledger", title="What became of every group?")
    moves, drawn = digest.timeline.moves, digest.timeline.num_drawn
    if not drawn:
        section.missing = (
            "No group was drawn: the run did not get to train, or events.jsonl is missing."
        )
        return section
    ends, rollouts = digest.timeline.ends, digest.journal.by_end
    live = drawn - sum(ends.values())
    meaning = {
        GroupState.TRAINED: "an optimizer step consumed it",
        GroupState.STALE: "too old when its turn came",
        GroupState.FILTERED: "all rewards equal: nothing to learn from",
        GroupState.FAILED: "too many members faulted",
        GroupState.CANCELLED: "could no longer be used, or the run ended",
    }
    rows = [
        [state.value, f"{ends[state]:,}", share(ends[state] / drawn), f"{rollouts[state]:,}", text]
        for state, text in meaning.items()
    ]
    if live:
        rows.append([LIVE, f"{live:,}", share(live / drawn), "-", "had not ended"])
    rows.append(["drawn", f"{drawn:,}", share(1.0), f"{digest.journal.num_rollouts:,}", ""])
    head = ["group", "groups", "share", "rollouts", "meaning"]
    section.tables.append(Table(head=head, rows=rows))
    stops = digest.journal.stops.most_common()
    if stops:
        all_stops = digest.journal.stops.total()
        section.tables.append(
            Table(
                head=["rollouts that stopped for", "rollouts", "share"],
                rows=[[stop.value, f"{n:,}", share(n / all_stops)] for stop, n in stops],
            )
        )
    ways = ", ".join(f"{old} to {new} {number:,}" for (old, new), number in flows(moves).items())
    section.pictures.append(
        Picture(name="ledger", alt=f"Groups by way: {ways}.", draw=ledger_flow(moves))
    )
    section.notes.append(
        "Groups by the transitions in events.jsonl, rollouts by the rollout log; every group ends once."
    )
    return section


def flows(moves: Moves) -> dict[Way, int]:
    """Groups by the two states (or `LIVE`) between which they went, none of them 0."""
    found: dict[Way, int] = {
        (old, new): number for (old, new), number in moves.items() if old is not None
    }
    entered, left = Counter[GroupState](), Counter[GroupState]()
    for (old, new), number in moves.items():
        entered[new] += number
        if old is not None:
            left[old] += number
    live: dict[Way, int] = {(state, LIVE): entered[state] - left[state] for state in CHAIN}
    return {way: number for way, number in (found | live).items() if number > 0}


def layout(ways: Mapping[Way, int], drawn: int) -> tuple[list[Node], list[Band]]:
    """Where states and bands lie; `drawn` groups are 1 high. y grows downwards."""
    width = {way: max(_THINNEST, number / drawn) for way, number in ways.items()}
    ends = [end for end in (*ENDS, LIVE) if any(new == end for _, new in ways)]
    names = [str(name) for name in (*CHAIN, *ends)]
    order = {name: position for position, name in enumerate(names)}
    top = dict.fromkeys(names, 0.0)
    y = 0.0
    for end in ends:
        top[end] = y
        y += sum(w for (_, new), w in width.items() if new == end) + _GAP
    left_at, entered_at = dict(top), dict(top)
    bands = []
    # Into an end, what comes from furthest right lies highest: it left the main way highest, too.
    for old, new in sorted(ways, key=lambda way: (-order[way[0]], order[way[1]])):
        wide = width[old, new]
        bands.append(
            Band(old=old, new=new, top_left=left_at[old], top_right=entered_at[new], width=wide)
        )
        left_at[old] += wide
        entered_at[new] += wide
    entered = Counter({str(GroupState.PENDING): drawn})
    for (_, new), number in ways.items():
        entered[new] += number
    nodes = [
        Node(
            name=name,
            number=entered[name],
            column=min(order[name], len(CHAIN)),
            top=top[name],
            height=max(left_at[name], entered_at[name]) - top[name],
        )
        for name in names
        if entered[name]
    ]
    return nodes, bands


def ledger_flow(moves: Moves) -> Draw:
    """The figure; `moves` are counted transitions, of one group at least."""
    nodes, bands = layout(flows(moves), moves[None, GroupState.PENDING])

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(FULL, 3.3), layout="constrained")
        axes = figure.subplots()
        colors = {
            GroupState.TRAINED: theme.after,
            GroupState.STALE: theme.learner,
            GroupState.FILTERED: theme.both,
            GroupState.FAILED: theme.bad,
            GroupState.CANCELLED: theme.muted,
            LIVE: theme.engine,
        }
        column = {node.name: node.column for node in nodes}
        for band in bands:
            left, right = column[band.old] + _NODE, column[band.new]
            axes.add_patch(_patch(band, left, right, colors.get(band.new, theme.before)))
        for node in nodes:
            corner = (node.column, node.top)
            color = colors.get(node.name, theme.before)
            axes.add_patch(Rectangle(corner, _NODE, node.height, color=color, lw=0))
            if node.column < len(CHAIN):
                word = "drawn" if node.name == GroupState.PENDING else node.name
                axes.text(node.column, -0.05, f"{word}  {node.number:,}", color=theme.ink)
            else:
                text = f"{node.name}  {node.number:,}  ({node.number / nodes[0].number:.0%})"
                middle = node.top + node.height / 2
                axes.text(node.column + 2.4 * _NODE, middle, text, va="center", color=theme.ink)
        lowest = max(node.top + node.height for node in nodes)
        axes.set_xlim(-0.05, len(CHAIN) + 1.15)
        axes.set_ylim(lowest + 0.03, -0.16)
        axes.set_axis_off()
        return figure

    return draw


def _patch(band: Band, left: float, right: float, color: str) -> PathPatch:
    middle = (left + right) / 2
    y0, y1, width = band.top_left, band.top_right, band.width
    vertices = [
        (left, y0), (middle, y0), (middle, y1), (right, y1),
        (right, y1 + width), (middle, y1 + width), (middle, y0 + width), (left, y0 + width),
        (left, y0),
    ]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    return PathPatch(Path(vertices, codes), color=color, alpha=0.32, lw=0)
