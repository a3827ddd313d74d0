r"""From one problem to verified environments: drafts of every synthesizer, tried until one passes.

Problem -> prepare -> extract: finest draft first -> verify -> Made
                  \-> llm: draft -> verify -> repair -> verify -> ... -> Made
"""

import time
from collections.abc import Sequence
from typing import Protocol

import msgspec

from configs.synth import SynthRecipe
from synth.court import Court
from synth.extract.synthesizer import drafts as extracted
from synth.filters import by_shape
from synth.prepare import Prepared, prepare
from synth.problem import Problem
from synth.records import Draft, Made, Refusal
from synth.report import Counts
from synth.shown import in_brief
from synth.verify import Verdict, verify

# Refusals that are sent back with a draft.
MAX_TOLD = 3


class Asking(Protocol):
    """The synthesizer that asks a model."""

    async def drafts(self, problem: Problem) -> Sequence[Draft | Refusal]: ...
    async def repair(self, draft: Draft, message: str) -> Draft | Refusal | None: ...


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one problem, or of one draft that was there already."""

    made: tuple[Made, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    drafts: int = 0
    """How many were verified."""
    asked: int = 0
    """Those of them that a model was asked for."""
    is_solved: bool = False
    """Whether the original solution answers inputs, and others agree."""
    seconds: float = 0.0


class Maker:
    """Makes environments of problems."""

    def __init__(self, court: Court, recipe: SynthRecipe, asking: Asking | None) -> None:
        self._court = court
        self._recipe = recipe
        self._asking = asking

    async def of_problem(self, problem: Problem) -> Making:
        """The environments of a problem that pass, and what did not."""
        begun_s = time.monotonic()
        prepared = await prepare(self._court, problem, self._recipe.verify)
        if isinstance(prepared, Refusal):
            return Making(refusals=(prepared,), seconds=time.monotonic() - begun_s)
        tried = _Tried(is_solved=True)
        if self._recipe.extract.enabled:
            await self._extract(prepared, tried)
        if self._asking is not None:
            await self._ask(self._asking, problem, tried)
        return tried.making(time.monotonic() - begun_s)

    async def of_draft(self, draft: Draft, problem: Problem | None) -> Making:
        """What becomes of a draft that is there already."""
        begun_s = time.monotonic()
        tried = _Tried()
        tried.add(await self._verify(draft, problem, tried))
        return tried.making(time.monotonic() - begun_s)

    async def _extract(self, prepared: Prepared, tried: "_Tried") -> None:
        """The finest draft whose tasks are within the window of calls; else the one that keeps most."""
        best: Made | None = None
        most = 0
        for draft in extracted(
            prepared.problem,
            prepared.examples,
            self._recipe.extract,
            configs=prepared.configs,
            levels=prepared.levels,
        ):
            if isinstance(draft, Refusal):
                tried.refusals.append(draft)
                continue
            verdict = await self._verify(draft, prepared.problem, tried)
            if verdict.made is None:
                tried.refusals += verdict.refusals
                continue
            kept = by_shape([verdict.made], self._recipe.filters).kept
            num_kept = len(kept[0].tasks) if kept else 0
            if best is None or num_kept > most:
                best, most = verdict.made, num_kept
            if 2 * num_kept >= len(verdict.made.tasks):
                break
        if best is not None:
            tried.made.append(best)

    async def _ask(self, asking: Asking, problem: Problem, tried: "_Tried") -> None:
        for first in await asking.drafts(problem):
            draft: Draft | Refusal | None = first
            while draft is not None:
                if isinstance(draft, Refusal):
                    tried.refusals.append(draft)
                    break
                tried.num_asked += 1
                verdict = await self._verify(draft, problem, tried)
                if verdict.made is not None:
                    tried.add(verdict)
                    break
                repaired = await asking.repair(draft, _told(verdict.refusals))
                if not isinstance(repaired, Draft):
                    # What the model did not mend.
                    tried.add(verdict)
                draft = repaired

    async def _verify(self, draft: Draft, problem: Problem | None, tried: "_Tried") -> Verdict:
        tried.num_drafts += 1
        return await verify(self._court, draft, problem, self._recipe.verify)


def count_made(
    counts: Counts,
    recipe: SynthRecipe,
    num_problems: int,
    makings: Sequence[Making],
    made: Sequence[Made],
) -> None:
    """Count the stages that each problem goes through by itself."""
    refusals = [one for making in makings for one in making.refusals]

    def of(stage: str) -> list[Refusal]:
        return [one for one in refusals if one.stage == stage]

    solved = sum(making.is_solved for making in makings)
    counts.stage("solve", num_problems, solved, of("solve"), unit="problems")
    if recipe.extract.enabled:
        lost = {one.problem for one in of("extract")}
        lost -= {one.draft.problem for one in made if one.draft.origin == "extract"}
        counts.stage("extract", solved, solved - len(lost), of("extract"), unit="problems")
    if recipe.llm.enabled:
        drafts = sum(making.asked for making in makings)
        counts.stage("llm", drafts + len(of("llm")), drafts, of("llm"), unit="drafts")
    counts.stage(
        "verify",
        sum(making.drafts for making in makings),
        len(made),
        of("verify"),
        unit="drafts",
        # They run side by side; what they took together stands with the longest.
        seconds=sum(making.seconds for making in makings),
    )


def _told(refusals: Sequence[Refusal]) -> str:
    """What a model is told of its draft: the first refusals, and on which configuration."""
    lines = []
    for one in refusals[:MAX_TOLD]:
        on = f" (configuration {in_brief(one.config)})" if one.config is not None else ""
        lines.append(f"{one.reason}: {one.detail}{on}")
    return "\n".join(lines)


class _Tried:
    """What was tried for one problem so far."""

    def __init__(self, *, is_solved: bool = False) -> None:
        self._is_solved = is_solved
        self.made: list[Made] = []
        self.refusals: list[Refusal] = []
        self.num_drafts = 0
        self.num_asked = 0

    def add(self, verdict: Verdict) -> None:
        if verdict.made is not None:
            self.made.append(verdict.made)
        self.refusals += verdict.refusals

    def making(self, seconds: float) -> Making:
        # A coarser draft that passed makes up for the finer ones that did not.
        return Making(
            made=tuple(self.made),
            refusals=tuple(self.refusals),
            drafts=self.num_drafts,
            asked=self.num_asked,
            is_solved=self._is_solved,
            seconds=seconds,
        )
