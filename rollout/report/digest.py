"""What the files of a run say, in numbers: one pass over each file.

Takes what a run leaves that still plays or was killed: files that are missing, a half last line, lines
that cannot be read. Rollouts are counted and forgotten; what is kept is a small record for each
optimizer step, each evaluation episode and each busy interval.
"""

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from rollout import processes
from rollout.audit import LEARNER, BusyShare, Interval, shares
from rollout.evaluate import Place, place
from rollout.ledger import ENDS, GroupState
from rollout.report.lines import EventLine, Reader, RowLine, Settings, StepLine, read_settings
from rollout.summary import Summary
from rollout.types import StopReason

# A curve by environment has a point for this many steps, else it is noise, but no more points than
# a small panel shows.
STEPS_PER_POINT = 4
MAX_CURVE_POINTS = 24


@dataclass(slots=True, kw_only=True)
class Journal:
    """Sums over every rollout of training."""

    by_end: Counter[GroupState] = field(default_factory=Counter)
    stops: Counter[StopReason] = field(default_factory=Counter)
    lags: Counter[int] = field(default_factory=Counter)
    """Trained rollouts by the lag of their oldest trained token."""
    num_mixed: int = 0
    """Trained rollouts sampled by more than one version."""
    num_turns: int = 0
    generate_s: float = 0.0
    env_s: float = 0.0
    num_parts: int = 1
    """Equal parts of the steps, for curves by environment."""
    curves: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Sum and number of rewards in each part."""

    @property
    def num_rollouts(self) -> int:
        return self.by_end.total()


@dataclass(slots=True, kw_only=True)
class Timeline:
    """The event log: which group went where, who computed when (seconds, monotonic clock)."""

    moves: Counter[tuple[GroupState | None, GroupState]] = field(default_factory=Counter)
    busy: dict[str, list[Interval]] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    first_s: float = math.inf
    last_s: float = -math.inf

    @property
    def training(self) -> Interval | None:
        """The training phase; up to the last event when it has no end yet."""
        begin = self.marks.get("train_begin")
        if begin is None:
            return None
        end = self.marks.get("train_end", self.last_s)
        return (begin, end) if end > begin else None

    @property
    def ends(self) -> dict[GroupState, int]:
        """Groups by end state."""
        return {
            state: sum(number for (_, new), number in self.moves.items() if new is state)
            for state in ENDS
        }

    @property
    def num_drawn(self) -> int:
        return self.moves[None, GroupState.PENDING]

    def shares(self) -> BusyShare | None:
        """Of the training phase; None without one."""
        if self.training is None:
            return None
        begin, end = self.training
        engine = (one for who, spans in self.busy.items() if who != LEARNER for one in spans)
        return shares(engine=engine, learner=self.busy.get(LEARNER, []), begin=begin, end=end)


@dataclass(slots=True, kw_only=True, frozen=True)
class Verdict:
    """What is kept of an evaluation episode. `actions` is a hash: equal for the same calls."""

    group_id: str
    sample: int
    """Of its task: 0 but where there are several."""
    task_id: str
    env: str
    reward: float | None
    actions: int


Verdicts = dict[Place, Verdict]


@dataclass(slots=True, kw_only=True)
class Digest:
    """A run in numbers."""

    settings: Settings
    summary: Summary | None
    is_alive: bool
    """Its driver still runs."""
    steps: list[StepLine]
    journal: Journal
    timeline: Timeline
    verdicts: dict[str, Verdicts]
    """Of the evaluations `before` and `after`."""
    unreadable: Counter[str]
    """Lines that could not be read, by file."""


def digest(run_dir: Path) -> Digest:
    """Read a run directory; raises ConfigError when it is none."""
    settings = read_settings(run_dir)
    reader = Reader(run_dir)
    steps = list(reader.read("metrics.jsonl", StepLine))
    return Digest(
        settings=settings,
        summary=_summary(run_dir),
        is_alive=_is_alive(run_dir),
        steps=steps,
        journal=_journal(reader, steps[-1].step if steps else settings.learner.steps),
        timeline=_timeline(reader),
        verdicts={label: _verdicts(reader, label) for label in ("before", "after")},
        unreadable=reader.unreadable,
    )


def episodes(run_dir: Path, label: str, wanted: set[Place]) -> dict[Place, RowLine]:
    """The episodes of an evaluation at these places."""
    rows = Reader(run_dir).read(f"rollouts/eval_{label}.jsonl", RowLine)
    placed = ((place(row.group_id, row.member), row) for row in rows)
    return {place: row for place, row in placed if place in wanted}


def _summary(run_dir: Path) -> Summary | None:
    path = run_dir / "summary.json"
    return msgspec.json.decode(path.read_bytes(), type=Summary) if path.exists() else None


def _is_alive(run_dir: Path) -> bool:
    if not (run_dir / "pids.json").exists():
        return False
    drivers = [one for one in processes.read_pids(run_dir) if one.name == "launch"]
    # A driver that makes this report itself has nothing left to play.
    return any(one.pid != os.getpid() and processes.is_alive(one) for one in drivers)


def _journal(reader: Reader, last_step: int) -> Journal:
    """A row has the step that trained on it; one that no step did counts to the step before it."""
    num_parts = min(MAX_CURVE_POINTS, max(1, last_step // STEPS_PER_POINT))
    journal = Journal(num_parts=num_parts)
    step = 0
    for row in reader.parts():
        if row.state is not None:
            journal.by_end[row.state] += 1
        journal.stops[row.stop] += 1
        journal.num_turns += len(row.turns)
        journal.generate_s += sum(turn.generate_s for turn in row.turns)
        journal.env_s += sum(turn.env_s for turn in row.turns)
        if row.lag is not None:
            journal.lags[row.lag] += 1
            journal.num_mixed += len(row.versions) > 1
        step = row.step or step
        if row.reward is not None:
            curve = journal.curves.setdefault(row.env, [(0.0, 0)] * num_parts)
            part = min(num_parts - 1, max(0, step - 1) * num_parts // max(1, last_step))
            total, number = curve[part]
            curve[part] = total + row.reward, number + 1
    return journal


def _timeline(reader: Reader) -> Timeline:
    timeline = Timeline()
    for event in reader.read("events.jsonl", EventLine):
        match event.kind:
            case "group" if event.new is not None:
                timeline.moves[event.old, event.new] += 1
            case "busy":
                timeline.busy.setdefault(event.who, []).append((event.start_s, event.end_s))
            case "mark":
                timeline.marks[event.name] = event.at_s
        for moment in (event.at_s, event.start_s, event.end_s):
            if math.isfinite(moment):
                timeline.first_s = min(timeline.first_s, moment)
                timeline.last_s = max(timeline.last_s, moment)
    return timeline


def _verdicts(reader: Reader, label: str) -> Verdicts:
    return {
        place(row.group_id, row.member): Verdict(
            group_id=row.group_id,
            sample=row.member,
            task_id=row.task_id,
            env=row.env,
            reward=row.reward,
            actions=hash(tuple(turn.action for turn in row.turns)),
        )
        for row in reader.read(f"rollouts/eval_{label}.jsonl", RowLine)
    }
