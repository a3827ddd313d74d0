"""Plays varied tasks of the shipped environments by their oracles, as the tests of variations need it."""

from random import Random
from typing import Any

from envpool.env import Oracle, ToolEnv, call_text
from envpool.envs import basics
from envpool.task import VARIATION, Config
from envpool.varied import Varied, playable
from synth.records import Move
from synth.vary import vary

Transcript = list[tuple[str, str, float, bool]]


def play(env: ToolEnv | Varied, oracle: Oracle, *, off_by: int = 0) -> Transcript:
    """Actions of an oracle with what they were answered; its answer is made wrong by `off_by`."""
    transcript: Transcript = []
    name, arguments = next(oracle)
    while True:
        if name == "done":
            arguments = {"answer": arguments["answer"] + off_by}
        action = call_text(name, arguments)
        observation, reward, is_over, _, info = env.step(action)
        assert not info["is_bad_call"], (action, observation)
        transcript.append((action, observation, reward, is_over))
        if is_over:
            return transcript
        name, arguments = oracle.send(observation)


def started(env_id: str, config: Config, *, seed: int = 0) -> ToolEnv | Varied:
    env = playable(basics[env_id](), config)
    env.reset(seed=seed, options=config)
    return env


def plain_trace(env_id: str, config: Config) -> list[Move]:
    env = started(env_id, config)
    oracle, moves = env.oracle(), []
    name, arguments = next(oracle)
    while True:
        observation, _, is_over, _, _ = env.step(call_text(name, arguments))
        moves.append(Move(name=name, arguments=arguments, observation=observation))
        if is_over:
            return moves
        name, arguments = oracle.send(observation)


def drawn(env_id: str, seed: int, kinds: list[str], *, level: int = 0) -> Config:
    """A configuration with a variation of these kinds."""
    rng = Random(seed)
    config: dict[str, Any] = basics[env_id].sample(rng, level)
    trace = plain_trace(env_id, config)
    return {**config, VARIATION: vary(basics[env_id].tools(), rng, kinds, trace=trace)}
