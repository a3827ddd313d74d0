"""Demonstrations: oracles of environments, played by a sloppy hand, as chat messages to imitate.

The first episodes are played well. In the others some calls are spoiled, and what followed is part of
the demonstration; a share of them is played in haste and ends in a guess. So the imitator knows how to
win and how to blunder, and which of the two it does is left to reinforcement. Where most hands were
hasty, even its likeliest reply is the bad habit. Only configurations of the training split are played.
"""

import json
from enum import StrEnum
from random import Random
from typing import Any

import msgspec

from configs.load import ConfigError, find
from configs.schema import PoolSection
from configs.sft import Message, MessagesRow, TraceRecipe
from envpool.env import ToolEnv
from envpool.folder import is_path
from envpool.source import PoolSource
from envpool.task import Config, Split
from envpool.varied import Varied, playable
from rollout import toolcall

# A wrong number is off by at most this, so that it is a slip and not a wild throw.
MAX_SLIP = 3
# An answer out of nowhere is drawn from 0 to this.
MAX_GUESS = 99


class Mistake(StrEnum):
    """How a call is spoiled."""

    WRONG_NUMBER = "wrong_number"
    """A number in it is off by a few. The oracle takes the answer as that to its own call."""
    EARLY_DONE = "early_done"
    """A random answer in its place."""
    BROKEN_JSON = "broken_json"
    """A brace is missing; the call is made again."""


def generate(recipe: TraceRecipe) -> list[MessagesRow]:
    """Play `recipe.count` episodes, the environments in turn; raises ConfigError for unknown ones."""
    if not recipe.wrong_number + recipe.early_done + recipe.broken_json:
        raise ConfigError("traces: no mistake has a weight: raise one, or set spoiled=0")
    section = PoolSection(source=recipe.source, trusted=True)
    folder = str(find(recipe.source)) if is_path(recipe.source) else ""
    source = PoolSource.load("traces", section, folder=folder)
    env_ids = recipe.envs or list(source.envs)
    envs = {env_id: source.env(env_id)() for env_id in env_ids}
    careful = msgspec.structs.replace(recipe, spoiled=0.0)
    rows = []
    for index in range(recipe.count):
        env_id = env_ids[index % len(env_ids)]
        # Each episode has its own chance, so that a longer recipe begins with the shorter one's rows.
        rng = Random(f"{recipe.seed}/{index}")
        config = source.draw(env_id, rng, Split.TRAIN, recipe.level)
        hand = careful if index < recipe.num_clean else recipe
        is_hasty = index >= recipe.num_clean and rng.random() < recipe.hasty
        env = playable(envs[env_id], config)
        messages, reward = play(env, config, rng, hand, is_hasty=is_hasty)
        rows.append(MessagesRow(env=env_id, messages=messages, tools=env.tools(), reward=reward))
    return rows


def play(
    env: ToolEnv | Varied,
    config: Config,
    rng: Random,
    recipe: TraceRecipe,
    *,
    is_hasty: bool = False,
) -> tuple[list[Message], float]:
    """One episode: its messages, which end with the last reply, and its reward."""
    statement, _ = env.reset(seed=rng.getrandbits(32), options=config)
    messages = [Message(role="user", content=statement)]
    oracle = env.oracle()
    name, arguments = next(oracle)
    last_seen = rng.randint(0, MAX_GUESS)
    for turn in range(recipe.max_turns):
        action = spoil(name, arguments, rng, recipe)
        if is_hasty and turn == recipe.patience and name != "done":
            action = call_text("done", {"answer": last_seen})
        messages.append(Message(role="assistant", content=toolcall.render(action)))
        observation, reward, is_over, is_cut, info = env.step(action)
        if is_over or is_cut:
            return messages, reward
        messages.append(Message(role="tool", content=observation))
        last_seen = _number_in(observation, arguments, last_seen)
        if not info["is_bad_call"]:
            name, arguments = oracle.send(observation)
    return messages[:-1], 0.0


def _number_in(observation: str, arguments: dict[str, Any], otherwise: int) -> int:
    """What a hasty hand would answer: the number just read, else the one just tried."""
    if observation.lstrip("-").isdigit():
        return int(observation)
    return next((value for value in arguments.values() if type(value) is int), otherwise)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as the policy writes it: JSON with blanks, as Qwen's template has it."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def spoil(name: str, arguments: dict[str, Any], rng: Random, recipe: TraceRecipe) -> str:
    """The text of the call, or with probability `recipe.spoiled` of one that is not it."""
    if rng.random() >= recipe.spoiled:
        return call_text(name, arguments)
    weights = (recipe.wrong_number, recipe.early_done, recipe.broken_json)
    mistake = rng.choices(list(Mistake), weights)[0]
    if mistake is Mistake.EARLY_DONE:
        return call_text("done", {"answer": rng.randint(0, MAX_GUESS)})
    slipped = _slip(arguments, rng)
    # A call without numbers cannot have a wrong one.
    if mistake is Mistake.WRONG_NUMBER and slipped is not None:
        return call_text(name, slipped)
    return call_text(name, arguments)[:-1]


def _slip(arguments: dict[str, Any], rng: Random) -> dict[str, Any] | None:
    """`arguments` with one whole number off by up to `MAX_SLIP`, never below 0; None without any."""
    numbers = [key for key, value in arguments.items() if type(value) is int]
    if not numbers:
        return None
    key = rng.choice(numbers)
    near = range(max(0, arguments[key] - MAX_SLIP), arguments[key] + MAX_SLIP + 1)
    return {**arguments, key: rng.choice([value for value in near if value != arguments[key]])}
