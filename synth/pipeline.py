r"""The factory from problems to a pool: every stage in order, finished work kept.

    read -> make (draw, solve, synthesize, verify) -> rate -> filter -> dedup -> split -> vary -> export
                     \-> one record per problem, so that a factory that was stopped goes on

Stages after `make` are quick and done again each time, but for pass rates, which are kept as well.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from configs.synth import SynthRecipe
from synth import export, report
from synth.court import Answer, Court
from synth.dedup import dedup
from synth.filters import by_pass_rate, by_shape
from synth.llm.recorded import recorded_drafts
from synth.making import Asking, Maker, Making
from synth.problem import Problem
from synth.progress import Stages
from synth.readers import read
from synth.records import Draft, Made, Refusal
from synth.splits import split
from synth.store import Store

T = TypeVar("T", Problem, Draft)


class Factory:
    """Runs a recipe once, in its output directory."""

    def __init__(
        self, recipe: SynthRecipe, out: Path, court: Court, stages: Stages, asking: Asking | None
    ) -> None:
        self._recipe = recipe
        self._out = out
        self._court = court
        self._stages = stages
        self._maker = Maker(court, recipe, asking)
        self._store = Store(out / "work")
        self._workers = asyncio.Semaphore(recipe.workers or os.cpu_count() or 1)
        self._counts = report.Counts()

    async def run(self) -> report.Report:
        """Make the pool; returns what its report says. Raises ConfigError, OSError."""
        problems, refusals = await asyncio.to_thread(read, self._recipe.problems)
        self._counts.stage("read", len(problems) + len(refusals), len(problems), refusals)
        made, refused = await self._make(problems)
        filtered = by_shape(made, self._recipe.filters)
        self._counts.stage("filter", len(made), len(filtered.kept), filtered.refusals)
        rated = filtered
        if self._recipe.filters.model:
            rated = by_pass_rate(await self._rate(filtered.kept), self._recipe.filters)
            self._counts.stage("pass rate", len(filtered.kept), len(rated.kept), rated.refusals)
        different = await dedup(
            rated.kept, answers=self._answers, threshold=self._recipe.filters.duplicates
        )
        self._counts.stage("dedup", len(rated.kept), len(different.kept), different.refusals)
        raise NotImplementedError(refused)

    async def _make(self, problems: Sequence[Problem]) -> tuple[list[Made], list[Refusal]]:
        drafts = await recorded_drafts() if self._recipe.recorded else []
        stage = self._stages.begin("make", len(problems) + len(drafts))
        made: list[Made] = []
        refusals: list[Refusal] = []

        async def one(item: Problem | Draft) -> Making:
            key = self._store.key(type(item).__name__, item.digest, *self._decides())
            if (found := self._store.get("made", key, Making)) is None:
                async with self._workers:
                    if isinstance(item, Problem):
                        found = await self._maker.of_problem(item)
                    else:
                        found = await self._maker.of_draft(item)
                await asyncio.to_thread(self._store.put, "made", key, found)
            made.extend(found.made)
            refusals.extend(found.refusals)
            stage.advance(f"{len(made)} environments")
            return found

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in (*problems, *drafts)]
        found = [task.result() for task in tasks]
        stage.end(f"{len(made)} environments")
        # In the order of the problems, whichever was finished first.
        return [one for making in found for one in making.made], [
            one for making in found for one in making.refusals
        ]

    def _decides(self) -> list[Any]:
        """What of the recipe decides what becomes of a problem."""
        recipe = self._recipe
        window = (recipe.filters.min_calls, recipe.filters.max_calls, recipe.filters.min_tools)
        return [recipe.verify, recipe.extract, recipe.llm, window]

    async def _answers(self, one: Made, configs: Sequence[dict[str, Any]]) -> list[Any]:
        """What an environment's original solution says of other configurations; None where it fails."""
        draft = one.draft
        (found,) = await self._court.solve(draft.solutions[:1], draft.entry, configs)
        return [answer.value if isinstance(answer, Answer) else None for answer in found]
