"""Recompute the ledger of a run from its files, to compare with what the coordinator counted."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from rollout.files import RolloutRow, whole_lines
from rollout.ledger import ENDS, GroupState, LedgerCounts

# Start and end of something, seconds on one clock.
Interval = tuple[float, float]

# What the learner is called in busy intervals; everybody else is an engine.
LEARNER = "learner"

_decode_row = msgspec.json.Decoder(RolloutRow).decode


class AuditError(Exception):
    """The files of a run contradict each other; the message says how."""


def rows(run_dir: Path) -> Iterator[RolloutRow]:
    """Every line of the rollout log, in order."""
    for part in sorted((run_dir / "rollouts").glob("part_*.jsonl")):
        for line in whole_lines(part):
            yield _decode_row(line)


def events(run_dir: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The lines of the event log of one kind: `group`, `trained`, `busy` or `mark`."""
    for line in whole_lines(run_dir / "events.jsonl"):
        event = msgspec.json.decode(line)
        if event["kind"] == kind:
            yield event


def recompute(run_dir: Path) -> LedgerCounts:
    """Count ended groups and their rollouts from the rollout log and the trained group ids.

    Raises:
        AuditError: a group has two end states or lacks a member, or the groups that the rollout log
            calls trained are not those that the optimizer steps named, each once.
    """
    states: dict[str, GroupState] = {}
    members: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    rollouts: Counter[str] = Counter()
    for row in rows(run_dir):
        if row.state is None:
            raise AuditError(f"a row of group {row.group_id} has no end state")
        if states.setdefault(row.group_id, row.state) is not row.state:
            raise AuditError(
                f"group {row.group_id} ended as {states[row.group_id]} and {row.state}"
            )
        members.setdefault(row.group_id, set()).add(row.member)
        sizes[row.group_id] = row.group_size
        rollouts[row.state] += 1
    for group_id, seen in members.items():
        if len(seen) != sizes[group_id]:
            raise AuditError(
                f"group {group_id} has rows of members {sorted(seen)}, {sizes[group_id]} expected"
            )
    named = [group for event in events(run_dir, "trained") for group in event["groups"]]
    logged = sorted(group for group, state in states.items() if state is GroupState.TRAINED)
    if sorted(named) != logged:
        odd = sorted((Counter(named) - Counter(logged)) | (Counter(logged) - Counter(named)))
        raise AuditError(f"steps and rollout log disagree on what was trained: {odd[:10]}")
    groups = Counter(states.values())
    return LedgerCounts(
        groups={state.value: groups[state] for state in ENDS},
        rollouts={state.value: rollouts[state] for state in ENDS},
    )


class BusyShare(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the training phase during which somebody computed."""

    wall_s: float
    engine: float
    """At least one engine."""
    learner: float
    both: float


def busy_share(run_dir: Path, *, after_step: int = 0) -> BusyShare:
    """How much engines and learner computed, and computed at once, from the event log.

    With `after_step` only what came after that step, when the pipeline is full. Raises AuditError when the run did not train.
    """
    marks = {event["name"]: event["at_s"] for event in events(run_dir, "mark")}
    if "train_begin" not in marks or "train_end" not in marks:
        raise AuditError(f"{run_dir} has no complete training phase")
    begin, end = marks["train_begin"], marks["train_end"]
    if after_step:
        trained = events(run_dir, "trained")
        # The step may lie before the last resume, and the time until then was nobody's.
        begin = max(begin, next(e["at_s"] for e in trained if e["step"] == after_step))
    spans: dict[bool, list[Interval]] = {True: [], False: []}
    for event in events(run_dir, "busy"):
        spans[event["who"] == LEARNER].append((event["start_s"], event["end_s"]))
    return shares(engine=spans[False], learner=spans[True], begin=begin, end=end)


def shares(
    *, engine: Iterable[Interval], learner: Iterable[Interval], begin: float, end: float
) -> BusyShare:
    """The shares of `begin..end` that busy intervals, in any order, cover."""
    engine, learner = (
        _union((max(begin, s), min(end, e)) for s, e in spans if s < end and e > begin)
        for spans in (engine, learner)
    )
    wall_s = end - begin
    return BusyShare(
        wall_s=wall_s,
        engine=_length(engine) / wall_s,
        learner=_length(learner) / wall_s,
        both=(_length(engine) + _length(learner) - _length(_union(engine + learner))) / wall_s,
    )


def _union(spans: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _length(spans: list[Interval]) -> float:
    return sum(end - start for start, end in spans)
