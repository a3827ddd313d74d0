"""`python launch.py synth audit`: what is wrong with the environments of a directory, whoever made them.

    directory -> environments, tasks (synth/audit_directory.py)
              -> sandbox: references, prompts, agents that only look, answers, programs (inside/examine.py)
              -> sandbox: solutions of their problems -> wrong references
              -> pairs that are one (synth/dedup.py)

Nothing that a factory recorded is believed: traces are played again, solutions asked again.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.synth import ProblemsRecipe, VerifyRecipe
from rollout.supervise import root_cause
from synth import audit_report, report, solvers
from synth.audit_directory import found_in
from synth.audit_pairs import duplicates
from synth.audit_report import AuditReport, Check, Finding
from synth.audit_trial import EXAMINE_S, Audited, examine
from synth.auditable import Auditable, AuditTask
from synth.court import Court, JobFault
from synth.llm.recorded import recorded_drafts
from synth.readers import read
from synth.records import Made
from synth.solvers import Solvers

__all__ = ["audit", "counted_in", "findings_of", "main"]

HELP = """\
usage: python launch.py synth audit DIR [--solvers FILE|DIR] [--json]

Looks for what is wrong with the environments of DIR, in the sandbox. DIR is a result of `synth`, a pool of
ToolEnvs, or a directory of env files after CodeGym's contract, with instances in JSONL or parquet beside
them if there are any.

  --solvers  problems whose solutions answer the same configurations: Python files, JSONL or parquet as
             `synth` reads them. An environment's problem is known by its id. Those that ship are used too.
  --json     one JSON object in place of the table

exit code: 0 whatever was found, 1 if the audit could not be made, 2 for a wrong DIR or option
"""

# Environments in one room, each in processes of its own.
PER_ROOM = 32
# A solution that takes longer on one configuration says nothing.
SOLVE_S = 10.0


async def audit(court: Court, directory: Path, *, solvers_at: str = "") -> AuditReport:
    """Audit a directory. Raises ConfigError for one that cannot be audited and for wrong solvers."""
    return await _audit_all(court, await _prepare(directory, solvers_at))


def counted_in(findings: Sequence[Finding]) -> report.Audit:
    """What a report says of findings."""
    counted = audit_report.counts(findings)
    return report.Audit(
        references_wrong=counted[Check.REFERENCES_WRONG],
        observe_only_wins=counted[Check.OBSERVE_ONLY_WINS],
        answer_leaks=counted[Check.ANSWER_LEAKS],
        duplicates=counted[Check.DUPLICATES],
    )


async def findings_of(court: Court, made: Sequence[Made]) -> list[Finding]:
    """The same one by one, and what else was found."""
    audited = [
        Audited(
            one=Auditable(
                env=one.draft.env,
                kind="millrace",
                name=one.draft.env,
                source=one.draft.source,
                tasks=tuple(AuditTask(config=task.config, trace=task.trace) for task in one.tasks),
            ),
            number=number,
            solvers=[Solvers.of_draft(one.draft)] if one.draft.solutions else [],
        )
        for number, one in enumerate(made)
    ]
    await _audit(court, audited)
    return _report("", audited, []).findings


def main(arguments: Sequence[str]) -> int:
    """Audit what the arguments name; returns the exit code. Raises ConfigError for a user's mistake."""
    words = list(arguments)
    if any(word in ("--help", "-h") for word in words):
        sys.stdout.write(HELP)
        return 0
    is_json = "--json" in words
    words = [word for word in words if word != "--json"]
    solvers_at = ""
    if "--solvers" in words:
        at = words.index("--solvers")
        if at + 1 == len(words):
            raise ConfigError("--solvers needs a file or directory of problems after it")
        solvers_at = words[at + 1]
        del words[at : at + 2]
    if unknown := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"there is no option {unknown[0]}: there are --solvers and --json")
    if len(words) != 1:
        raise ConfigError(f"audit takes one directory, not {len(words)}: launch.py synth audit DIR")
    try:
        found = asyncio.run(_main(Path(words[0]).expanduser(), solvers_at))
    except (OSError, JobFault, ExceptionGroup) as error:
        cause = root_cause(error)
        if not isinstance(cause, OSError | JobFault):
            raise
        sys.stderr.write(f"error: the audit could not be made: {cause}\n")
        return 1
    if is_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write(audit_report.table(found))
    return 0


async def _main(directory: Path, solvers_at: str) -> AuditReport:
    prepared = await _prepare(directory, solvers_at)
    async with Court(VerifyRecipe()) as court:
        return await _audit_all(court, prepared)


@dataclass(slots=True, kw_only=True, frozen=True)
class _Prepared:
    """A directory that was read."""

    directory: str
    audited: list[Audited]
    notes: list[str]


async def _prepare(directory: Path, solvers_at: str) -> _Prepared:
    found, notes = await asyncio.to_thread(found_in, directory)
    known = await _known_solvers(solvers_at)
    audited = [
        Audited(one=one, number=number, solvers=solvers.of_words(known, one.words))
        for number, one in enumerate(found)
    ]
    if without := sum(not one.solvers for one in audited):
        notes = [*notes, f"no solutions are known of {without} environments: --solvers names some"]
    return _Prepared(directory=str(directory), audited=audited, notes=notes)


async def _audit_all(court: Court, prepared: _Prepared) -> AuditReport:
    await _audit(court, prepared.audited)
    return _report(prepared.directory, prepared.audited, prepared.notes)


async def _known_solvers(solvers_at: str) -> Mapping[str, list[Solvers]]:
    """Of the given problems and of those that ship, by id; of recorded environments also by theirs."""
    problems, _ = await asyncio.to_thread(read, ProblemsRecipe())
    if solvers_at:
        given, refusals = await asyncio.to_thread(read, ProblemsRecipe(paths=[solvers_at]))
        if not given:
            said = refusals[0].detail if refusals else "it is empty"
            raise ConfigError(f"--solvers {solvers_at} has no problem: {said}")
        problems = [*problems, *given]
    known = solvers.by_id(problems)
    for draft in await recorded_drafts():
        for word in {draft.env, draft.problem}:
            known.setdefault(word, []).append(Solvers.of_draft(draft))
    return known


# -- the way of all environments ------------------------------------------------------------------


async def _audit(court: Court, audited: Sequence[Audited]) -> None:
    slots = asyncio.Semaphore(os.cpu_count() or 1)
    async with AsyncExitStack() as stack:
        await _open_rooms(court, audited, stack)

        async def one(item: Audited) -> None:
            async with slots:
                await examine(item)

        async with asyncio.TaskGroup() as group:
            for item in audited:
                group.create_task(one(item))
        by_env = {item.one.env: item for item in audited}
        for finding in await duplicates(audited):
            by_env[finding.env].findings.append(finding)


async def _open_rooms(court: Court, audited: Sequence[Audited], stack: AsyncExitStack) -> None:
    """Rooms for environments, one for each pool of files, and others for solutions: never both in one."""
    alone = [item for item in audited if not item.one.module]
    groups = [alone[start : start + PER_ROOM] for start in range(0, len(alone), PER_ROOM)]
    pools: dict[int, list[Audited]] = {}
    for item in audited:
        if item.one.module:
            pools.setdefault(id(item.one.files), []).append(item)
    for group in (*groups, *pools.values()):
        sources = {f"_env_{x.number}.py": x.one.source for x in group if not x.one.module}
        # What lies in a pool for others to read is for nobody's import here.
        files = group[0].one.files if group[0].one.module else sources
        files = {name: text for name, text in files.items() if not name.endswith(".jsonl")}
        try:
            room = await stack.enter_async_context(court.room(files, longest_s=EXAMINE_S))
        except JobFault as fault:
            for item in group:
                item.find(Check.FAULTS, str(fault))
            continue
        for item in group:
            item.room = room
    for start in range(0, len(audited), PER_ROOM):
        group = audited[start : start + PER_ROOM]
        texts = [solvers.files_of(item.number, item.solvers) for item in group]
        laid = {name: text for files in texts for name, text in files.items()}
        room = (
            await stack.enter_async_context(court.room(laid, timeout_s=SOLVE_S)) if laid else None
        )
        for item in group:
            item.solutions = room


def _report(directory: str, audited: Sequence[Audited], notes: Sequence[str]) -> AuditReport:
    findings = audit_report.joined([one for item in audited for one in item.findings])
    looked_at = {
        check.value: sum(item.looked_at.get(check, 0) for item in audited) for check in Check
    }
    looked_at[Check.DUPLICATES] = len(audited) * (len(audited) - 1) // 2
    looked_at[Check.FAULTS] = sum(max(1, item.num_tasks) for item in audited)
    return AuditReport(
        directory=directory,
        envs=len(audited),
        tasks=sum(item.num_tasks for item in audited),
        audit=audit_report.counts(findings),
        looked_at=looked_at,
        findings=findings,
        notes=list(notes),
    )
