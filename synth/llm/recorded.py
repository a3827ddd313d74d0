"""Environments that ship: problems of our own, and replies to their prompts as a model would give them.

They come by the very path of a model's replies and are verified as those are, so that a pool can be made
where there is no endpoint, and every stage after this one has something real to work on.
"""

import asyncio
from pathlib import Path

import msgspec

from synth.llm.prompts import Prompts
from synth.llm.replies import RefusedReply, Reply, draft_of, read_environment, read_solver
from synth.problem import Problem, Test
from synth.records import Draft

FOLDER = Path(__file__).parent / "recorded"


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of `problems.jsonl`."""

    id: str
    statement: str
    solution: str
    solutions: list[str]
    """Further ones."""
    tests: list[Test]
    concept: str
    licence: str
    source: str


async def recorded_drafts() -> list[Draft]:
    """The shipped drafts, in the order of their problems."""
    return await asyncio.to_thread(_read)


def recorded_problems() -> list[Problem]:
    """What they were made from. Blocks."""
    path = FOLDER / "problems.jsonl"
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        row = msgspec.json.decode(line, type=_Row)
        found.append(
            Problem(
                id=row.id,
                statement=row.statement,
                solutions=(row.solution, *row.solutions),
                tests=tuple(row.tests),
                concept=row.concept,
                licence=row.licence,
                source=row.source,
                place=f"{path.name}:{number}",
            )
        )
    return found


def _read() -> list[Draft]:
    versions = Prompts.load().versions
    return [_draft(problem, versions) for problem in recorded_problems()]


def _draft(problem: Problem, versions: str) -> Draft:
    folder = FOLDER / "replies"
    place = folder / f"{problem.id}.environment.md"
    try:
        written = read_environment(_reply(place), problem)
        solvers = []
        for place in sorted(folder.glob(f"{problem.id}.solver.*.md")):
            solvers.append(read_solver(_reply(place), problem))
    except RefusedReply as refused:
        raise RuntimeError(f"{place}: {refused.text}") from refused
    notes = ("recorded: written for this repository", f"prompts: {versions}")
    return draft_of(problem, written, solvers, origin="recorded", notes=notes)


def _reply(path: Path) -> Reply:
    return Reply(text=path.read_text(encoding="utf-8"))
