"""One environment under audit: everything that is asked of it, and of the solutions of its problem.

begin -> references, statements -> each task looked at beside the environment (inside/examine.py)
      -> solutions asked -> references compared
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from envpool.task import Config
from synth import shown, solvers
from synth.audit_report import BY_ENV, Check, Finding
from synth.auditable import Auditable, AuditTask
from synth.court import INSIDE, Answer, Desk, Failure, JobFault, Room
from synth.inputs import inputs
from synth.shown import in_brief
from synth.solvers import Solvers

# Longest that all checks of one task may take.
EXAMINE_S = 60.0
# Configurations begun in one job.
PER_JOB = 64
# Configurations drawn where none are listed, and answers needed to call one constant.
DRAWN, MIN_ANSWERS = 8, 8
# Configurations with other answers that are played beside each task.
OTHERS = 2
# A failure that says nothing about the answer.
ABSTAINS = frozenset({"timeout", "memory"})

T = TypeVar("T")


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What a process tells of a configuration; of one that fails why."""

    fault: str = ""
    reference: Any = None
    statement: str = ""
    hidden: Any = None


class _Looked(msgspec.Struct, frozen=True, kw_only=True):
    """What it tells of a task."""

    findings: list[tuple[Check, str]]
    is_changing: bool
    has_oracle: bool
    is_enough: bool


class _Judged(msgspec.Struct, frozen=True, kw_only=True):
    """And of answers to it."""

    values: list[Any]
    wins: list[bool]
    is_strict: bool


@dataclass(slots=True, kw_only=True)
class Known:
    """A task whose environment could be begun."""

    task: AuditTask
    config: Any
    """As solutions take it; None where it is no JSON."""
    reference: Any
    statement: str
    is_enough: bool = True
    """Whether the answer wins alone, without calls before it."""


@dataclass(slots=True, kw_only=True)
class Audited:
    """One environment on its way through the audit."""

    one: Auditable
    number: int
    solvers: list[Solvers]
    room: Room | None = None
    solutions: Room | None = None
    known: list[Known] = field(default_factory=list)
    variants: list[Known] = field(default_factory=list)
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


async def examine(item: Audited) -> None:
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
            known.is_enough = found.is_enough
            is_changing = is_changing or found.is_changing
            has_oracle = has_oracle or found.has_oracle
            for check, detail in found.findings:
                item.find(check, detail, known.config)
        if has_oracle:
            item.looked_at[Check.STATELESS] = 1
            if not is_changing:
                item.find(Check.STATELESS, "no call of its program changed anything hidden")
        _constant(item)
        await _compare(item, desk)
    for check in Check:
        if check not in BY_ENV and check not in item.looked_at:
            item.looked_at[check] = len(item.known)


async def _begin(item: Audited, desk: Desk) -> None:
    """Find its tasks and their references. Raises JobFault."""
    tasks = list(item.one.tasks)
    if not tasks:
        drawn = await _run(item, desk, list[Config], "draw", count=DRAWN, level=0, seed=0)
        tasks = [AuditTask(config=config) for config in drawn]
    item.num_tasks = len(tasks)
    for task, one in zip(tasks, await begun(item, desk, tasks), strict=True):
        if isinstance(one, Known):
            item.known.append(one)
        else:
            item.find(Check.FAULTS, one, task.config)
    configs = [one.config for one in item.known if isinstance(one.config, dict)]
    if len(configs) >= MIN_ANSWERS or len({tuple(one) for one in configs}) != 1:
        return
    more = inputs(configs, 2 * DRAWN, 0)[len(configs) :]
    variants = [AuditTask(config=config, literal=repr(config)) for config in more]
    found = await begun(item, desk, variants)
    item.variants = [one for one in found if isinstance(one, Known)]


async def begun(item: Audited, desk: Desk, tasks: Sequence[AuditTask]) -> list[Known | str]:
    """Each task with its reference; or why there is none. Raises JobFault."""
    told: list[_Begun] = []
    for start in range(0, len(tasks), PER_JOB):
        given = [item.given(task) for task in tasks[start : start + PER_JOB]]
        some = await _run(item, desk, list[_Begun], "references", configs=given)
        _check_number(some, given)
        told += some
    found: list[Known | str] = []
    for task, one in zip(tasks, told, strict=True):
        if one.fault:
            found.append(one.fault)
            continue
        known = Known(
            task=task,
            config=one.hidden if isinstance(one.hidden, dict) else None,
            reference=one.reference,
            statement=one.statement,
        )
        found.append(known)
    return found


async def _look(item: Audited, desk: Desk, known: Known) -> _Looked:
    """What the checks say that are made beside the environment. Raises JobFault."""
    # One of each other answer.
    others = {repr(one.reference): one for one in (*item.known, *item.variants)}
    others.pop(repr(known.reference), None)
    empty = [{}] if isinstance(known.reference, dict) else []
    return await _run(
        item,
        desk,
        _Looked,
        "examine",
        config=item.given(known.task),
        prompt=known.task.prompt,
        right=known.reference,
        wrong=[*shown.wrong_answers(known.reference), *empty],
        others=[item.given(one.task) for one in list(others.values())[:OTHERS]],
        trace=[list(msgspec.structs.astuple(move)) for move in known.task.trace],
    )


def _constant(item: Audited) -> None:
    told = [*item.known, *item.variants]
    if len(told) < MIN_ANSWERS or not all(one.is_enough for one in item.known):
        return
    item.looked_at[Check.CONSTANT_ANSWERS] = 1
    if all(_is_same(one.reference, told[0].reference) for one in told):
        words = f"{in_brief(told[0].reference)} is the answer to all of {len(told)} configurations"
        item.find(Check.CONSTANT_ANSWERS, words)


async def _run(item: Audited, desk: Desk, kind: type[T], job: str, **arguments: Any) -> T:
    """What a job tells, in a process in which the environment's code runs: anything. Raises JobFault."""
    given = {"where": item.where, **arguments}
    told = await desk.run(f"{INSIDE}.examine:{job}", given, timeout_s=EXAMINE_S)
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError as error:
        raise JobFault("crashed", f"the job told something else: {error}") from error


def _check_number(told: Sequence[Any], asked: Sequence[Any]) -> None:
    if len(told) != len(asked):
        raise JobFault("crashed", f"the job told of {len(told)} in place of {len(asked)}")


def _is_same(first: Any, second: Any) -> bool:
    try:
        return shown.equal(first, second)
    except TypeError:  # a number and a text
        return False


async def _compare(item: Audited, desk: Desk) -> None:
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
    item: Audited,
    desk: Desk,
    known: Known,
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
    judged = await _run(item, desk, _Judged, "judged", config=config, answers=values)
    _check_number(judged.values, given)
    _check_number(judged.wins, given)
    is_strict = judged.is_strict and not one.checker
    for (number, said), value, wins in zip(given, judged.values, judged.wins, strict=True):
        is_equal = _is_same(value, known.reference)
        who = f"solution {number} of {one.problem}" if number else f"the solution of {one.problem}"
        if (is_strict and not is_equal) or not (is_equal or wins):
            words = f"the reference is {in_brief(known.reference)}, {who} says {in_brief(said)}"
            item.find(Check.REFERENCES_WRONG, words, known.config)
        elif not wins and known.is_enough:
            item.find(Check.TYPE_BRITTLE, f"{in_brief(said)} loses, of {who}", known.config)


async def _check(item: Audited, group: int, known: Sequence[Known]) -> None:
    """Have a problem's checker judge the references."""
    one = item.solvers[group]
    asked = [(task, one.arguments(task.config)) for task in known]
    cases = [[task.reference, arguments] for task, arguments in asked if arguments is not None]
    source = solvers.checker_name(item.number, group)
    assert item.solutions is not None, "there are solutions"
    try:
        arguments = {"source": source, "cases": cases}
        said = await item.solutions.run(f"{INSIDE}.solving:check", arguments)
    except JobFault as fault:
        item.find(Check.FAULTS, f"the checker of {one.problem}: {fault}")
        return
    told = said if isinstance(said, list) else []
    # A checker that tells of fewer has said nothing of the rest.
    for (reference, config), is_right in zip(cases, told, strict=False):
        if is_right is not True:
            words = f"the checker of {one.problem} says that {in_brief(reference)} is wrong"
            item.find(Check.REFERENCES_WRONG, words, config)
