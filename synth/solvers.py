"""Solutions of problems for an auditor: which belong to an environment, and what they answer to its tasks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from envpool.task import Config
from synth.court import Answer, Failure, Room
from synth.problem import ENTRY, Problem, ProblemError, entry_of, parameters_of
from synth.records import Draft


class Solvers(msgspec.Struct, frozen=True, kw_only=True):
    """Solutions of one problem."""

    problem: str
    sources: tuple[str, ...]
    """The original first."""
    entry: str = ENTRY
    checker: str = ""
    kind: Literal["function", "stdin"] = "function"

    @classmethod
    def of_problem(cls, problem: Problem) -> "Solvers":
        return cls(
            problem=problem.id,
            sources=problem.solutions,
            entry=problem.entry,
            checker=problem.checker,
            kind=problem.kind,
        )

    @classmethod
    def of_draft(cls, draft: Draft) -> "Solvers":
        is_function = bool(draft.solutions) and bool(_parameters(draft.solutions[0], draft.entry))
        return cls(
            problem=draft.problem,
            sources=draft.solutions,
            entry=draft.entry,
            checker=draft.checker,
            kind="function" if is_function else "stdin",
        )

    def arguments(self, config: Config) -> Config | None:
        """A configuration as the solutions take it, names by place where they differ; else None."""
        if self.kind == "stdin":
            return config if config.keys() == {"stdin"} else None
        names = _parameters(self.sources[0], self.entry)
        return renamed(config, names)


def renamed(config: Config, names: Sequence[str]) -> Config | None:
    """A configuration under other names: as it is where they are the same, else by place; None if neither."""
    if config.keys() == set(names):
        return config
    if len(config) != len(names):
        return None
    return dict(zip(names, config.values(), strict=True))


def by_id(problems: Iterable[Problem]) -> dict[str, list[Solvers]]:
    """Solutions by id of their problem; several sets may solve one."""
    found: dict[str, list[Solvers]] = {}
    for problem in problems:
        found.setdefault(problem.id, []).append(Solvers.of_problem(problem))
    return found


def of_words(known: Mapping[str, list[Solvers]], words: Iterable[str]) -> list[Solvers]:
    """Those whose problem has one of these ids, no source twice."""
    found: list[Solvers] = []
    seen: set[str] = set()
    for word in sorted(words):
        for one in known.get(word, ()):
            sources = tuple(source for source in one.sources if source not in seen)
            seen.update(sources)
            if sources:
                found.append(msgspec.structs.replace(one, sources=sources))
    return found


def files_of(number: int, solvers: Sequence[Solvers]) -> dict[str, str]:
    """The files of an environment's solutions and checkers, by name."""
    files: dict[str, str] = {}
    for group, one in enumerate(solvers):
        for place, source in enumerate(one.sources):
            files[_name(number, group, place)] = source
        if one.checker:
            files[checker_name(number, group)] = one.checker
    return files


def checker_name(number: int, group: int) -> str:
    return f"_checker_{number}_{group}.py"


async def answers(
    room: Room, number: int, group: int, one: Solvers, configs: Sequence[Config]
) -> list[list[Answer | Failure | None]]:
    """What each solution answers to each configuration; None where it does not take it."""
    asked = [one.arguments(config) for config in configs]
    args: list[Any] = [arguments for arguments in asked if arguments is not None]
    told = []
    for place in range(len(one.sources)):
        name = _name(number, group, place)
        found = iter(await room.solve(name, one.entry, args, kind=one.kind))
        told.append([None if arguments is None else next(found) for arguments in asked])
    return told


def _name(number: int, group: int, place: int) -> str:
    return f"_solution_{number}_{group}_{place}.py"


def _parameters(source: str, entry: str) -> list[str]:
    """Of the entry function; none where there is no such function."""
    try:
        return parameters_of(entry_of(source, entry))
    except ProblemError:
        return []
