"""Environments under audit that are one: pairs by their texts, and by their references to the same inputs."""

import asyncio
from collections.abc import Sequence
from typing import Any

from configs.synth import FilterRecipe
from synth import dedup
from synth.audit_report import Check, Finding
from synth.audit_trial import Audited, Known, begun
from synth.auditable import AuditTask
from synth.court import JobFault
from synth.records import Draft, Made, MadeTask


async def duplicates(audited: Sequence[Audited]) -> list[Finding]:
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


def _as_made(item: Audited) -> Made | None:
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


async def _references_of(item: Audited, configs: Sequence[dict[str, Any]]) -> list[Any]:
    """References to configurations of others; None where there is none."""
    assert item.room is not None, "it was begun"
    tasks = [AuditTask(config=config, literal=repr(config)) for config in configs]
    try:
        async with item.room.desk() as desk:
            found = await begun(item, desk, tasks)
    except JobFault:
        return [None] * len(configs)
    return [one.reference if isinstance(one, Known) else None for one in found]
