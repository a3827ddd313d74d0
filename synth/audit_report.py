"""What an audit found: the checks, the findings, and the table that people read."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from rollout.printable import printable

FORMAT = 1
# Findings that a table lists of each check; the JSON has all.
MAX_LISTED = 5
# Characters of a detail in the table.
MAX_DETAIL = 200


class Check(StrEnum):
    """What is looked for. Each counts what is wrong, so that 0 is best."""

    REFERENCES_WRONG = "references_wrong"
    """Tasks whose reference is not the answer of a solution of the problem."""
    OBSERVE_ONLY_WINS = "observe_only_wins"
    """Tasks whose whole hidden input a tool without parameters prints, or whose answer stands at a place of what
    such tools show that is right for other configurations too."""
    ANSWER_LEAKS = "answer_leaks"
    """Tasks whose prompt prints the answer or the whole hidden input, that tell the answer to who gave a
    wrong one, or that let a second answer count."""
    DUPLICATES = "duplicates"
    """Pairs of environments that are one, by their texts or by their answers."""
    TYPE_BRITTLE = "type_brittle"
    """Tasks that the right answer loses when it is written as text."""
    ORACLE_FAILS = "oracle_fails"
    """Tasks that the environment's own program, or the recorded trace, does not win."""
    NOT_DETERMINISTIC = "not_deterministic"
    """Tasks that answer the same calls otherwise when they are played again."""
    CONSTANT_ANSWERS = "constant_answers"
    """Environments with one answer for every configuration."""
    STATELESS = "stateless"
    """Environments of which no tool changed hidden state while their programs played."""
    FAULTS = "faults"
    """Tasks or environments that could not be looked at: their code failed."""


# Counted by environment; the others by task, duplicates by pair.
BY_ENV = frozenset({Check.CONSTANT_ANSWERS, Check.STATELESS})


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong."""

    check: Check
    env: str
    """Of a pair the first."""
    detail: str
    config: Any = None
    """Of one task; else of the environment."""


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """All that an audit says of a directory."""

    format: int = FORMAT
    directory: str
    envs: int
    tasks: int
    audit: dict[str, int]
    """Number of tasks, environments or pairs by check."""
    looked_at: dict[str, int]
    """Tasks, environments or pairs that a check could be made of."""
    findings: list[Finding]
    notes: list[str] = []
    """What was left out, and why."""


def counts(findings: Iterable[Finding]) -> dict[str, int]:
    """How many by check, 0 where nothing was found."""
    found = Counter(one.check for one in findings)
    return {check.value: found[check] for check in Check}


def joined(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each check of each task, with all that is to be said of it, sorted by check."""
    order = list(Check)
    groups: dict[tuple[Check, str, bytes], list[Finding]] = {}
    for one in findings:
        key = msgspec.json.encode(one.config, order="sorted")
        if one.check is Check.DUPLICATES:
            key = one.detail.encode()
        groups.setdefault((one.check, one.env, key), []).append(one)
    merged = []
    for same in groups.values():
        details = "; ".join(dict.fromkeys(one.detail for one in same))
        merged.append(msgspec.structs.replace(same[0], detail=details))
    return sorted(merged, key=lambda one: order.index(one.check))


def table(report: AuditReport) -> str:
    """The report as text of several lines, which end with a line break."""
    lines = [f"{report.directory}: {report.envs} environments, {report.tasks} tasks", ""]
    widest = max(len(check) for check in Check)
    lines.append(f"{'check'.ljust(widest)}  found      of  counted")
    for check in Check:
        found, of = report.audit[check], report.looked_at.get(check, 0)
        unit = "pairs" if check is Check.DUPLICATES else "envs" if check in BY_ENV else "tasks"
        if check is Check.REFERENCES_WRONG and not of and not found:
            lines.append(f"{check.ljust(widest)}      -       -  no solution known")
            continue
        lines.append(f"{check.ljust(widest)}  {found:5}  {of:6}  {unit}")
    for check, findings in _by_check(report.findings).items():
        lines += ["", f"{check}:"]
        for one in findings[:MAX_LISTED]:
            detail = " ".join(one.detail.split())
            cut = detail if len(detail) <= MAX_DETAIL else f"{detail[:MAX_DETAIL]}..."
            lines.append(f"  {one.env}: {cut}")
        if len(findings) > MAX_LISTED:
            lines.append(f"  and {len(findings) - MAX_LISTED} more: --json lists all")
    if report.notes:
        lines += ["", *(f"note: {note}" for note in report.notes)]
    return "\n".join(printable(line) for line in lines) + "\n"


def _by_check(findings: Sequence[Finding]) -> Mapping[Check, list[Finding]]:
    groups: dict[Check, list[Finding]] = {}
    for one in findings:
        groups.setdefault(one.check, []).append(one)
    return groups
