"""How often a model wins verified tasks: an engine of ours, or any OpenAI-compatible endpoint.

A rate is kept as soon as its environment was played, so that a factory that was stopped asks nothing twice.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from configs.synth import FilterRecipe
from rollout.episode import Limits
from synth.address import find_key, find_url, section_of
from synth.chat import Chat
from synth.court import Court
from synth.filters import task_key
from synth.player import Measured, Player, measure
from synth.player_endpoint import EndpointPlayer
from synth.progress import Stages
from synth.records import Made, MadeTask, PassRate
from synth.store import Store

if TYPE_CHECKING:
    from synth.player_local import LocalPlayer

KIND = "rates"
# Calls beyond an oracle's that a model may make.
SPARE_CALLS = 16


class Rated(msgspec.Struct, frozen=True, kw_only=True):
    """Pass rates of one environment's tasks by `task_key`; none for those that could not be measured."""

    rates: dict[str, PassRate]


async def rate(
    court: Court,
    made: Sequence[Made],
    recipe: FilterRecipe,
    *,
    model: str,
    store: Store,
    stages: Stages,
) -> dict[str, PassRate]:
    """Pass rates of all tasks by `task_key`. Raises ConfigError and PlayerError."""
    found: dict[str, PassRate] = {}
    stage = stages.begin("pass rate", len(made))
    max_calls = max((task.num_calls for one in made for task in one.tasks), default=0)
    decides = await asyncio.to_thread(_decides, recipe, model)
    async with _player(court, recipe, model, max_calls + SPARE_CALLS) as player:
        for one in made:
            keys = [task_key(one.draft.env, task) for task in one.tasks]
            key = store.key(one.draft.source, keys, *decides)
            rated = await asyncio.to_thread(store.get, KIND, key, Rated)
            if rated is None:
                rated = Rated(rates=await _rates(court, player, one, one.tasks, recipe))
                if len(rated.rates) == len(keys):
                    # What failed of an endpoint or an engine is asked again next time.
                    await asyncio.to_thread(store.put, KIND, key, rated)
            found |= rated.rates
            stage.advance(f"{len(found)} tasks measured")
    stage.end(f"{len(found)} tasks measured")
    return found


def _decides(recipe: FilterRecipe, model: str) -> list[Any]:
    """What but the tasks decides rates: the model, which may change in its directory, and its limits."""
    folder = Path(model)
    files = sorted(folder.iterdir()) if not recipe.base_url and folder.is_dir() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    limits = [recipe.max_reply_tokens, recipe.max_context_tokens, recipe.episode_timeout_s]
    return [model, stamps, recipe.base_url, recipe.samples, limits]


async def _rates(
    court: Court, player: Player, one: Made, tasks: Sequence[MadeTask], recipe: FilterRecipe
) -> dict[str, PassRate]:
    async with court.room({"draft.py": one.draft.source}) as room:
        asked = [room.task(one.draft.env, task.config) for task in tasks]
        measured: Sequence[Measured] = await measure(
            player, asked, recipe.samples, concurrency=recipe.concurrency
        )
    return {
        task_key(one.draft.env, task): found.pass_rate
        for task, found in zip(tasks, measured, strict=True)
        if found.pass_rate is not None
    }


@asynccontextmanager
async def _player(
    court: Court, recipe: FilterRecipe, model: str, max_calls: int
) -> AsyncIterator[Player]:
    limits = Limits(
        max_turns=max_calls,
        max_reply_tokens=recipe.max_reply_tokens,
        max_context_tokens=recipe.max_context_tokens,
        timeout_s=recipe.episode_timeout_s,
    )
    player: Player
    if recipe.base_url:
        url = find_url(recipe, os.environ)
        key = find_key(recipe, url, os.environ)
        chat = await asyncio.to_thread(Chat, url=url, key=key, section=section_of(recipe))
        player = EndpointPlayer(chat, model, court.sessions, limits)
    else:
        kind = await asyncio.to_thread(_local_player)
        player = await kind.start(model, court.sessions, limits)
    try:
        yield player
    finally:
        await player.close()


def _local_player() -> "type[LocalPlayer]":
    """It takes torch, whose import takes seconds that no other stage needs. Blocks."""
    from synth.player_local import LocalPlayer

    return LocalPlayer
