"""`python launch.py synth audit`: what is wrong with the environments of a directory, whoever made them.

    directory -> environments, tasks (synth/auditable.py)
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from configs.load import ConfigError
from configs.synth import FilterRecipe, ProblemsRecipe, VerifyRecipe
from synth import audit_report, dedup, report, shown, solvers
from synth.audit_report import BY_ENV, AuditReport, Check, Finding
from synth.auditable import Auditable, AuditTask, found_in
from synth.court import INSIDE, Answer, Court, Desk, Failure, JobFault, Room
from synth.inputs import inputs
from synth.llm.recorded import recorded_drafts
from synth.readers import read
from synth.records import Draft, Made, MadeTask
from synth.shown import in_brief
from synth.solvers import Solvers

__all__ = ["audit", "audit_made", "findings_of", "main"]

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
# Longest that all checks of one task may take.
EXAMINE_S = 60.0
# Configurations drawn where none are listed, and answers needed to call one constant.
DRAWN, MIN_ANSWERS = 8, 8
# A failure that says nothing about the answer.
ABSTAINS = frozenset({"timeout", "memory"})


@dataclass(slots=True, kw_only=True)
class _Known:
    """A task whose environment could be begun."""

    task: AuditTask
    config: Any
    """As solutions take it; None where it is no JSON."""
    reference: Any
    statement: str


@dataclass(slots=True, kw_only=True)
class _Audited:
    """One environment on its way through the audit."""

    one: Auditable
    number: int
    solvers: list[Solvers]
    room: Room | None = None
    solutions: Room | None = None
    known: list[_Known] = field(default_factory=list)
    variants: list[_Known] = field(default_factory=list)
    """Like its tasks, and none of them."""
    num_tasks: int = 0
    findings: list[Finding] = field(default_factory=list)
    looked_at: dict[Check, int] = field(default_factory=dict)

    @property
    def where(self) -> dict[str, str]:
        module = self.one.module or f"_env_{self.number}"
        return {"kind": self.one.kind, "module": module, "name": self.one.name}

    def given(self, task: AuditTask) -> Any:
        """A configuration as the environment takes it."""
        return task.literal if self.one.kind == "codegym" else task.config

    def find(self, check: Check, detail: str, config: Any = None) -> None:
        self.findings.append(Finding(check=check, env=self.one.env, detail=detail, config=config))


async def audit(court: Court, directory: Path, *, solvers_at: str = "") -> AuditReport:
    """Audit a directory. Raises ConfigError for one that cannot be audited and for wrong solvers."""
    found, notes = await asyncio.to_thread(found_in, directory)
    known = await _known_solvers(solvers_at)
    audited = [
        _Audited(one=one, number=number, solvers=solvers.of_words(known, one.words))
        for number, one in enumerate(found)
    ]
    await _audit(court, audited)
    if without := sum(not one.solvers for one in audited):
        notes = [*notes, f"no solutions are known of {without} environments: --solvers names some"]
    return _report(str(directory), audited, notes)


async def audit_made(court: Court, made: Sequence[Made]) -> report.Audit:
    """What is wrong with environments that a factory made, counted."""
    counted = audit_report.counts(await findings_of(court, made))
    return report.Audit(
        references_wrong=counted[Check.REFERENCES_WRONG],
        observe_only_wins=counted[Check.OBSERVE_ONLY_WINS],
        answer_leaks=counted[Check.ANSWER_LEAKS],
        duplicates=counted[Check.DUPLICATES],
    )


async def findings_of(court: Court, made: Sequence[Made]) -> list[Finding]:
    """The same one by one, and what else was found."""
    audited = [
        _Audited(
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
    except (OSError, JobFault) as error:
        sys.stderr.write(f"error: the audit could not be made: {error}\n")
        return 1
    if is_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    else:
        sys.stdout.write(audit_report.table(found))
    return 0


async def _main(directory: Path, solvers_at: str) -> AuditReport:
    async with Court(VerifyRecipe()) as court:
        return await audit(court, directory, solvers_at=solvers_at)


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


async def _audit(court: Court, audited: Sequence[_Audited]) -> None:
    slots = asyncio.Semaphore(os.cpu_count() or 1)
    async with AsyncExitStack() as stack:
        await _open_rooms(court, audited, stack)

        async def one(item: _Audited) -> None:
            async with slots:
                await _examine(item)

        async with asyncio.TaskGroup() as group:
            for item in audited:
                group.create_task(one(item))
        for finding in await _duplicates(audited):
            next(x for x in audited if x.one.env == finding.env).findings.append(finding)


async def _open_rooms(court: Court, audited: Sequence[_Audited], stack: AsyncExitStack) -> None:
    """Rooms for environments, one for each pool of files, and others for solutions: never both in one."""
    alone = [item for item in audited if not item.one.module]
    groups = [alone[start : start + PER_ROOM] for start in range(0, len(alone), PER_ROOM)]
    pools: dict[int, list[_Audited]] = {}
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
        room = await stack.enter_async_context(court.room(laid)) if laid else None
        for item in group:
            item.solutions = room


async def _examine(item: _Audited) -> None:
    """All checks of one environment."""
    if item.room is None:
        return
    async with item.room.desk() as desk:
        try:
            await _begin(item, desk)
        except JobFault as fault:
            item.find(Check.FAULTS, str(fault))
            return
        is_changing = has_oracle = False
        for known in item.known:
            try:
                found = await _look(item, desk, known)
            except JobFault as fault:
                item.find(Check.FAULTS, str(fault), known.config)
                continue
            is_changing = is_changing or found["is_changing"]
            has_oracle = has_oracle or found["has_oracle"]
            for check, detail in found["findings"]:
                item.find(Check(check), detail, known.config)
        if has_oracle:
            item.looked_at[Check.STATELESS] = 1
            if not is_changing:
                item.find(Check.STATELESS, "no call of its program changed anything hidden")
        _constant(item)
        await _compare(item, desk)
    for check in Check:
        if check not in BY_ENV and check not in item.looked_at:
            item.looked_at[check] = len(item.known)


async def _begin(item: _Audited, desk: Desk) -> None:
    """Find its tasks and their references. Raises JobFault."""
    tasks = list(item.one.tasks)
    if not tasks:
        drawn = await _run(item, desk, "draw", count=DRAWN, level=0, seed=0)
        tasks = [AuditTask(config=config) for config in drawn]
    item.num_tasks = len(tasks)
    item.known = await _references(item, desk, tasks, finds=True)
    configs = [one.config for one in item.known if isinstance(one.config, dict)]
    if len(configs) >= MIN_ANSWERS or len({tuple(one) for one in configs}) != 1:
        return
    more = inputs(configs, 2 * DRAWN, 0)[len(configs) :]
    variants = [AuditTask(config=config, literal=repr(config)) for config in more]
    item.variants = await _references(item, desk, variants, finds=False)


async def _references(
    item: _Audited, desk: Desk, tasks: Sequence[AuditTask], *, finds: bool
) -> list[_Known]:
    told = await _run(item, desk, "references", configs=[item.given(task) for task in tasks])
    known = []
    for task, one in zip(tasks, told, strict=True):
        if "fault" in one:
            if finds:
                item.find(Check.FAULTS, one["fault"], task.config)
            continue
        config = one["hidden"] if isinstance(one["hidden"], dict) else None
        known.append(
            _Known(task=task, config=config, reference=one["reference"], statement=one["statement"])
        )
    return known


async def _look(item: _Audited, desk: Desk, known: _Known) -> dict[str, Any]:
    """What the checks say that are made beside the environment. Raises JobFault."""
    others = [*item.known, *item.variants]
    other = next((one for one in others if one.reference != known.reference), None)
    empty = [{}] if isinstance(known.reference, dict) else []
    return await _run(
        item,
        desk,
        "examine",
        config=item.given(known.task),
        prompt=known.task.prompt,
        right=known.reference,
        wrong=[*shown.wrong_answers(known.reference), *empty],
        other=None if other is None else item.given(other.task),
        trace=[list(msgspec.structs.astuple(move)) for move in known.task.trace],
    )


def _constant(item: _Audited) -> None:
    told = [*item.known, *item.variants]
    if len(told) < MIN_ANSWERS:
        return
    item.looked_at[Check.CONSTANT_ANSWERS] = 1
    if all(shown.equal(one.reference, told[0].reference) for one in told):
        words = f"{in_brief(told[0].reference)} is the answer to all of {len(told)} configurations"
        item.find(Check.CONSTANT_ANSWERS, words)


async def _run(item: _Audited, desk: Desk, job: str, **arguments: Any) -> Any:
    given = {"where": item.where, **arguments}
    return await desk.run(f"{INSIDE}.examine:{job}", given, timeout_s=EXAMINE_S)


# -- references -----------------------------------------------------------------------------------


async def _compare(item: _Audited, desk: Desk) -> None:
    """Ask the solutions, and compare what the environment holds for right."""
    known = [one for one in item.known if one.config is not None]
    compared: set[int] = set()
    for group, one in enumerate(item.solvers):
        assert item.solutions is not None, "there are solutions"
        configs = [task.config for task in known]
        told = await solvers.answers(item.solutions, item.number, group, one, configs)
        for index, task in enumerate(known):
            answers = [answers[index] for answers in told]
            if any(isinstance(answer, Answer) for answer in answers):
                compared.add(index)
            try:
                await _judge(item, desk, task, answers, one)
            except JobFault as fault:
                item.find(Check.FAULTS, str(fault), task.config)
        if one.checker:
            await _check(item, group, known)
    item.looked_at[Check.REFERENCES_WRONG] = len(compared)


async def _judge(
    item: _Audited,
    desk: Desk,
    known: _Known,
    answers: Sequence[Answer | Failure | None],
    one: Solvers,
) -> None:
    """Compare one reference with what solutions answer. Raises JobFault."""
    first = answers[0]
    if isinstance(first, Failure) and first.reason not in ABSTAINS:
        words = f"the solution of {one.problem} has no answer: {first.reason}: {first.detail}"
        item.find(Check.REFERENCES_WRONG, words, known.config)
    given = [(n, answer.value) for n, answer in enumerate(answers) if isinstance(answer, Answer)]
    if not given:
        return
    config = item.given(known.task)
    values = [value for _, value in given]
    judged = await _run(item, desk, "judged", config=config, answers=values)
    is_strict = judged["is_strict"] and not one.checker
    for (number, said), value, wins in zip(given, judged["values"], judged["wins"], strict=True):
        is_equal = shown.equal(value, known.reference)
        who = f"solution {number} of {one.problem}" if number else f"the solution of {one.problem}"
        if (is_strict and not is_equal) or not (is_equal or wins):
            words = f"the reference is {in_brief(known.reference)}, {who} says {in_brief(said)}"
            item.find(Check.REFERENCES_WRONG, words, known.config)
        elif not wins:
            item.find(Check.TYPE_BRITTLE, f"{in_brief(said)} loses, of {who}", known.config)


async def _check(item: _Audited, group: int, known: Sequence[_Known]) -> None:
    """Have a problem's checker judge the references."""
    one = item.solvers[group]
    asked = [(task, one.arguments(task.config)) for task in known]
    cases = [[task.reference, arguments] for task, arguments in asked if arguments is not None]
    source = solvers.checker_name(item.number, group)
    assert item.solutions is not None, "there are solutions"
    try:
        arguments = {"source": source, "cases": cases}
        told = await item.solutions.run(f"{INSIDE}.solving:check", arguments)
    except JobFault as fault:
        item.find(Check.FAULTS, f"the checker of {one.problem}: {fault}")
        return
    for (reference, config), is_right in zip(cases, told, strict=True):
        if is_right is not True:
            words = f"the checker of {one.problem} says that {in_brief(reference)} is wrong"
            item.find(Check.REFERENCES_WRONG, words, config)


# -- duplicates -----------------------------------------------------------------------------------


async def _duplicates(audited: Sequence[_Audited]) -> list[Finding]:
    """Pairs that are one, by what their texts say or their references are."""
    by_env = {item.one.env: item for item in audited}
    made = [one for item in audited if (one := _as_made(item)) is not None]
    threshold = FilterRecipe().duplicates

    async def told(one: Made, configs: Sequence[dict[str, Any]]) -> list[Any]:
        return await _references_of(by_env[one.draft.env], configs)

    by_text = await asyncio.to_thread(dedup.text_pairs, made)
    by_answers = await dedup.behaviour_pairs(made, answers=told, threshold=threshold)
    pairs: dict[frozenset[str], dedup.Pair] = {}
    for pair in (*by_text, *by_answers):
        if pair.alike >= threshold:
            pairs.setdefault(frozenset((pair.first, pair.second)), pair)
    return [
        Finding(check=Check.DUPLICATES, env=pair.first, detail=f"as {pair.second}: {pair.detail}")
        for pair in pairs.values()
    ]


def _as_made(item: _Audited) -> Made | None:
    """What is compared of an environment; None for one that could not be begun."""
    told = [one for one in (*item.known, *item.variants) if one.config is not None]
    if not told:
        return None
    # The name of a class is its own, also where all else is copied.
    source = item.one.source.replace(item.one.name, "Env")
    draft = Draft(
        env=item.one.env,
        problem=item.solvers[0].problem if item.solvers else item.one.env,
        concept="",
        origin="extract",
        source=source,
        configs=(),
        solutions=("",),
    )
    tasks = [
        MadeTask(
            config=one.config,
            level=0,
            answer=one.reference,
            prompt=f"{one.task.prompt}\n{one.statement}",
            trace=one.task.trace,
        )
        for one in told
    ]
    return Made(draft=draft, tools=[], changes=(), tasks=tuple(tasks))


async def _references_of(item: _Audited, configs: Sequence[dict[str, Any]]) -> list[Any]:
    """References to configurations of others, whose names may differ; None where there is none."""
    assert item.room is not None and item.known, "it was begun"
    own = next(one.config for one in (*item.known, *item.variants) if one.config is not None)
    asked = [solvers.renamed(config, list(own)) for config in configs]
    given = [
        item.given(AuditTask(config=config, literal=repr(config))) for config in asked if config
    ]
    try:
        async with item.room.desk() as desk:
            told = iter(await _run(item, desk, "references", configs=given))
    except JobFault:
        return [None] * len(configs)
    return [next(told).get("reference") if config else None for config in asked]


def _report(directory: str, audited: Sequence[_Audited], notes: Sequence[str]) -> AuditReport:
    findings = audit_report.joined([one for item in audited for one in item.findings])
    looked_at = {
        check.value: sum(item.looked_at.get(check, 0) for item in audited) for check in Check
    }
    looked_at[Check.DUPLICATES] = len(audited) * (len(audited) - 1) // 2
    looked_at[Check.FAULTS] = sum(item.num_tasks for item in audited)
    return AuditReport(
        directory=directory,
        envs=len(audited),
        tasks=sum(item.num_tasks for item in audited),
        audit=audit_report.counts(findings),
        looked_at=looked_at,
        findings=findings,
        notes=list(notes),
    )
