"""Variants of verified tasks: the same task played otherwise, and won again before it is kept.

The moves that won the plain task are made again, in the varied task's words, against a session of it.
"""

from collections.abc import Sequence
from random import Random
from typing import Any

import msgspec

from configs.synth import VariationRecipe
from envpool.env import Oracle
from envpool.task import VARIATION, config_digest
from envpool.tools import call_text
from envpool.variation import read_variation
from envpool.varied_oracle import varied_oracle
from synth.court import Court, JobFault, Room, step
from synth.records import Made, MadeTask, Move, Refusal
from synth.vary import draw_kinds, vary

STAGE = "vary"
# Calls of a variant: failures and pages make more of them.
MAX_CALLS = 4096


async def with_variants(
    court: Court, made: Sequence[Made], recipe: VariationRecipe
) -> tuple[list[Made], list[Refusal]]:
    """The environments, with variants of a share of their tasks beside the plain ones."""
    if not recipe.share:
        return list(made), []
    refusals: list[Refusal] = []
    found: list[Made] = []
    for one in made:
        async with court.room({"draft.py": one.draft.source}) as room:
            variants = []
            for task in one.tasks:
                rng = Random(f"{recipe.seed}/{config_digest(one.draft.env, task.config)}")
                if rng.random() >= recipe.share:
                    continue
                variant = await _variant(room, one, task, rng, recipe.kinds)
                if isinstance(variant, Refusal):
                    refusals.append(variant)
                else:
                    variants.append(variant)
        found.append(msgspec.structs.replace(one, tasks=(*one.tasks, *variants)))
    return found, refusals


async def _variant(
    room: Room, one: Made, task: MadeTask, rng: Random, kinds: Sequence[str]
) -> MadeTask | Refusal:
    config: dict[str, Any] = {
        **task.config,
        VARIATION: vary(one.tools, rng, draw_kinds(kinds, rng), trace=task.trace),
    }
    variation = read_variation(config[VARIATION], one.draft.env)
    try:
        prompt, trace, reward = await _played(
            room, one.draft.env, config, varied_oracle(_again(task.trace), variation)
        )
    except JobFault as fault:
        prompt, trace, reward = "", (), 0.0
        why = str(fault)
    else:
        why = f"its moves end with reward {reward:g} after {len(trace)} calls"
    if reward != 1.0:
        return Refusal(
            problem=one.draft.problem,
            env=one.draft.env,
            config=config,
            stage=STAGE,
            reason="variant is not won",
            detail=why,
        )
    return msgspec.structs.replace(task, config=config, prompt=prompt, trace=trace, pass_rate=None)


async def _played(
    room: Room, env: str, config: dict[str, Any], oracle: Oracle
) -> tuple[str, tuple[Move, ...], float]:
    """Statement, moves and reward of a varied task. Raises JobFault."""
    life = await room.open(env, config)
    moves: list[Move] = []
    try:
        call = next(oracle)
        while len(moves) < MAX_CALLS:
            name, arguments = call
            result = await step(life, call_text(name, arguments), room.timeout_s)
            moves.append(Move(name=name, arguments=arguments, observation=result.observation))
            if result.terminated or result.truncated:
                return life.prompt, tuple(moves), result.reward
            try:
                call = oracle.send(result.observation)
            except StopIteration:
                break
        return life.prompt, tuple(moves), 0.0
    finally:
        await life.close()


def _again(trace: Sequence[Move]) -> Oracle:
    """The moves of a trace, whatever they are answered."""
    for move in trace:
        yield move.name, move.arguments
