r"""The factory from problems to a pool: every stage in order, finished work kept.

    read -> make (draw, solve, synthesize, verify) -> filter -> pass rate -> dedup -> vary -> split
                     \-> one record per problem, so that a factory that was stopped goes on
         -> audit -> export, report

Stages after `make` are quick and done again each time, but for pass rates, which are kept as well.
"""

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from configs.synth import SynthRecipe
from synth import exchange, export, report
from synth.audit import counted_in, findings_of
from synth.audit_report import Check, Finding
from synth.court import Answer, Court
from synth.dedup import Deduped, dedup
from synth.extract import emit
from synth.filters import Filtered, Quarantined, by_pass_rate, by_shape, unsolved, with_rates
from synth.llm.recorded import recorded_drafts, recorded_problems
from synth.making import Asking, Maker, Making, count_made
from synth.problem import Problem
from synth.progress import Stages
from synth.rating import rate
from synth.readers import read
from synth.records import Draft, Made, Refusal
from synth.splits import Splits, split
from synth.store import Store
from synth.varying import with_variants

# Where finished work lies, in the output directory.
WORK = "work"
# How long a solution may take for an input of another problem.
ANSWER_TIMEOUT_S = 0.5
# Rows that are no problems, of which it is said at once what is wrong.
MAX_SAID = 5
# Why the model was not asked any more, in a refusal.
BUDGET = "budget"

logger = logging.getLogger(__name__)

# A problem, or a draft that is there already with the problem it was made from.
_Item = tuple[Problem, None] | tuple[Draft, Problem | None]


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
        self._store = Store(out / WORK)
        self._workers = asyncio.Semaphore(recipe.workers or os.cpu_count() or 1)
        self._counts = report.Counts()

    async def run(self) -> report.Report:
        """Make the pool; returns what its report says. Raises ConfigError, OSError."""
        recipe = self._recipe
        problems, unread = await asyncio.to_thread(read, recipe.problems)
        self._counts.stage(
            "read", len(problems) + len(unread), len(problems), unread, unit="problems"
        )
        for one in unread[:MAX_SAID]:
            logger.warning("not a problem: %s", one.detail)
        if len(unread) > MAX_SAID:
            logger.warning("and %d more: report.md has them all", len(unread) - MAX_SAID)
        # Beside problems of somebody's own they would pass for what these gave.
        has_shipped = recipe.recorded and not recipe.problems.paths
        shipped = await asyncio.to_thread(recorded_problems) if has_shipped else []
        drafts = await recorded_drafts() if has_shipped else []
        made = await self._make(problems, shipped, drafts)
        rated = await self._filter(made)
        different = await self._dedup(rated.kept)
        varied, refused = await with_variants(self._court, different.kept, recipe.variation)
        if recipe.variation.share:
            self._counts.stage("vary", len(different.kept), len(varied), refused)
        varied, audit = await self._audited(varied)
        near = [(pair.first, pair.second) for pair in different.near]
        splits = split(varied, recipe.split, near)
        told = report.build(
            problems=[*problems, *shipped],
            made=varied,
            splits=splits,
            counts=self._counts,
            audit=audit,
            quarantined=rated.quarantined,
        )
        before = await asyncio.to_thread(export.read_manifest, self._out)
        if told.tasks or before is None:
            await asyncio.to_thread(self._write, told, varied, splits, rated.quarantined)
        else:
            logger.warning("nothing passed: what was there before is kept as it was")
        return told

    async def _make(
        self, problems: Sequence[Problem], shipped: Sequence[Problem], drafts: Sequence[Draft]
    ) -> list[Made]:
        by_id = {problem.id: problem for problem in shipped}
        items: list[_Item] = [
            *((problem, None) for problem in problems),
            *((draft, by_id.get(draft.problem)) for draft in drafts),
        ]
        kept = await asyncio.to_thread(self._kept, items)
        stage = self._stages.begin("environments", len(items))
        num_made = 0

        async def one(item: _Item, key: str, found: Making | None) -> Making:
            nonlocal num_made
            if found is None:
                async with self._workers:
                    match item:
                        case (Problem() as problem, _):
                            found = await self._maker.of_problem(problem)
                        case (draft, problem):
                            found = await self._maker.of_draft(draft, problem)
                # What the budget cut short is made again once there is more of it.
                if not any(one.reason == BUDGET for one in found.refusals):
                    await asyncio.to_thread(self._store.put, "made", key, found)
            num_made += len(found.made)
            stage.advance(f"{num_made} pass")
            return found

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one(item, key, found))
                for item, (key, found) in zip(items, kept, strict=True)
            ]
        # In the order of the problems, whichever was finished first.
        found = [task.result() for task in tasks]
        stage.end(f"{num_made} pass")
        made = with_own_ids([one for making in found for one in making.made])
        count_made(self._counts, self._recipe, len(problems), found, made)
        return made

    def _kept(self, items: Sequence[_Item]) -> list[tuple[str, Making | None]]:
        """Each item's key, and its record where it is finished. Blocks."""
        kept = []
        for item, problem in items:
            key = record_key(self._store, self._recipe, item, problem)
            kept.append((key, self._store.get("made", key, Making)))
        if num_kept := sum(found is not None for _, found in kept):
            logger.info("%d of %d are finished already, under these settings", num_kept, len(kept))
        elif self._store.has("made"):
            logger.warning(
                "what is finished here is of other settings, problems or code: it is not taken over"
            )
        return kept

    async def _filter(self, made: Sequence[Made]) -> Filtered:
        recipe = self._recipe.filters
        shaped = by_shape(made, recipe)
        self._counts.stage("filter", len(made), len(shaped.kept), shaped.refusals)
        if not recipe.model:
            return shaped
        rated = with_rates(shaped.kept, await self._rate(shaped.kept, recipe.model))
        stronger: dict[str, Any] = {}
        if recipe.stronger and (hard := unsolved(rated)):
            envs = {one.draft.env: one for one, _ in hard}
            asked = [
                msgspec.structs.replace(one, tasks=tuple(task for of, task in hard if of is one))
                for one in envs.values()
            ]
            stronger = await self._rate(asked, recipe.stronger)
        found = by_pass_rate(rated, recipe, stronger)
        self._counts.stage("pass rate", len(rated), len(found.kept), found.refusals)
        return found

    async def _rate(self, made: Sequence[Made], model: str) -> dict[str, Any]:
        return await rate(
            self._court,
            made,
            self._recipe.filters,
            model=model,
            store=self._store,
            stages=self._stages,
        )

    async def _dedup(self, made: Sequence[Made]) -> Deduped:
        threshold = self._recipe.filters.duplicates
        found = await dedup(made, answers=self._answers, threshold=threshold)
        self._counts.stage("dedup", len(made), len(found.kept), found.refusals)
        return found

    async def _audited(self, made: Sequence[Made]) -> tuple[list[Made], report.Audit]:
        """The environments that the audit has nothing against, whatever passed before; what it says of them."""
        kept, refusals, audit = audited(made, await findings_of(self._court, made))
        self._counts.stage("audit", len(made), len(kept), refusals)
        return kept, audit

    async def _answers(self, one: Made, configs: Sequence[dict[str, Any]]) -> list[Any]:
        """What an environment's original solution says of other configurations; None where it fails."""
        draft = one.draft
        # Inputs of another problem may be outside its domain, where it need not end.
        (found,) = await self._court.solve(
            draft.solutions[:1], draft.entry, configs, timeout_s=ANSWER_TIMEOUT_S
        )
        return [answer.value if isinstance(answer, Answer) else None for answer in found]

    def _write(
        self,
        told: report.Report,
        made: Sequence[Made],
        splits: Splits,
        quarantined: Sequence[Quarantined],
    ) -> None:
        files = report.render_report(told, name=self._out.name)
        files["README.md"] = report.render_card(
            told, name=self._out.name, model=self._recipe.filters.model
        )
        export.export(
            self._out,
            made=made,
            splits=splits,
            recipe=self._recipe,
            quarantined=quarantined,
            told=files,
        )


def record_key(
    store: Store, recipe: SynthRecipe, item: Problem | Draft, problem: Problem | None = None
) -> str:
    """What a finished problem, or draft of `problem`, is kept under: all that decides what becomes of it."""
    llm, filters = recipe.llm, recipe.filters
    asked = (llm.enabled, llm.model, llm.samples, llm.solvers, llm.temperature)
    window = (filters.min_calls, filters.max_calls, filters.min_tools)
    return store.key(
        type(item).__name__,
        item.digest,
        problem.digest if problem else "",
        recipe.verify,
        recipe.extract,
        asked,
        llm.max_tokens,
        llm.repairs,
        window,
    )


def audited(
    made: Sequence[Made], findings: Sequence[Finding]
) -> tuple[list[Made], list[Refusal], report.Audit]:
    """The environments without a finding that makes them wrong, why not the others, and what is left to tell."""
    problems = {one.draft.env: one.draft.problem for one in made}
    refusals = [
        Refusal(
            problem=problems.get(one.env, ""),
            env=one.env,
            stage="audit",
            reason=one.check.value,
            detail=one.detail,
        )
        for one in findings
        if one.check in (Check.REFERENCES_WRONG, Check.OBSERVE_ONLY_WINS, Check.ANSWER_LEAKS)
    ]
    wrong = {one.env for one in refusals}
    kept = [one for one in made if one.draft.env not in wrong]
    return kept, refusals, counted_in([one for one in findings if one.env not in wrong])


def with_own_ids(made: Sequence[Made]) -> list[Made]:
    """The same, but for those whose id another has: two samples of a model may choose one name."""
    found: dict[str, Made] = {}
    for one in made:
        env, number = one.draft.env, 2
        while env in found:
            env, number = f"{one.draft.env}_v{number}", number + 1
        if env != one.draft.env:
            old, new = exchange.class_name(one.draft.source, one.draft.env), emit.class_name(env)
            source = re.sub(rf"\b{re.escape(old)}\b", new, one.draft.source)
            one = msgspec.structs.replace(
                one, draft=msgspec.structs.replace(one.draft, env=env, source=source)
            )
        found[env] = one
    return list(found.values())
