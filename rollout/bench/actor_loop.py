"""How much of its engine an actor gets: episodes played by the actor, and their requests asked bare.

The actor plays groups of tasks with real environments. Then the same conversations (prompts of as many
tokens, replies of as many) are asked of the same engine by nothing but `generate`, with as many members
at a time and each turn after the one before. Both are timed on the wall, in turns, and each begins with
nothing in the engine's prefix cache.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from configs.load import load
from configs.schema import RunConfig
from envpool.pool import EnvPool
from envpool.source import Source
from envpool.task import Split
from rollout.actor import Actor
from rollout.bench.playing import play
from rollout.bench.same_weights import published, renew
from rollout.engine import Engine, Generation, UpdateMode, UpdateReport
from rollout.episode import Limits
from rollout.run import Checked, check
from rollout.tokens import ChatTokens
from rollout.types import EngineStats, Grant, Sampling
from rollout.weights import Manifest

RECIPE, POOL = "local.toml", "tiny"

# As many members at once as the engine has room for, several times over.
NUM_GROUPS, GROUP_SIZE = 36, 16
REPEATS = 3

# What was asked in one member's turns: each prompt, how many tokens its reply had, and its seed.
Chain = list[tuple[Sequence[int], int, int]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Share:
    """Sampled tokens per second of each, the best of the repeats."""

    actor: float
    raw: float

    @property
    def ratio(self) -> float:
        return self.actor / self.raw


@dataclass(slots=True)
class Recorder:
    """An engine that writes down what it is asked, by group and member."""

    engine: Engine
    asked: dict[str, dict[str, Chain]] = field(default_factory=dict)

    @property
    def version(self) -> int:
        return self.engine.version

    @property
    def num_parameters(self) -> int:
        return self.engine.num_parameters

    @property
    def pids(self) -> list[int]:
        return self.engine.pids

    @property
    def num_tokens(self) -> int:
        """Tokens of all replies."""
        groups = self.asked.values()
        return sum(count for group in groups for chain in group.values() for _, count, _ in chain)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        reply = await self.engine.generate(prompt_ids, sampling, priority=priority)
        task = asyncio.current_task()
        assert task is not None
        group, _, member = task.get_name().partition("/")  # as an actor names its members' tasks
        chain = self.asked.setdefault(group, {}).setdefault(member, [])
        chain.append((list(prompt_ids), len(reply.token_ids), sampling.seed))
        return reply

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        return await self.engine.update_weights(manifest, mode)

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def take_busy(self) -> list[tuple[float, float]]:
        return self.engine.take_busy()

    async def close(self) -> None:
        """Leave the engine to its owner."""


def load_recipe(kind: str, *overrides: str) -> Checked:
    """The run whose tasks are played, with an engine of this kind. Not inside an event loop."""
    return check(load([RECIPE, f"engine.kind={kind}", *overrides]))


async def measure(checked: Checked, engine: Engine, *, num_groups: int = NUM_GROUPS) -> Share:
    """Play, ask the same again, and so on in turns."""
    sys.setswitchinterval(5e-4)  # as in an actor's process
    config = checked.config
    pool = await EnvPool.start({POOL: config.pools[POOL]}, limits=config.envpool)
    played, asked = [], []
    try:
        grants = _grants(checked.sources[POOL], num_groups)
        async with published(Path(config.model.path)) as manifest:
            for _ in range(REPEATS):
                recorder = Recorder(engine)
                await renew(engine, manifest, UpdateMode.RECOMPUTE)
                seconds = await _play(config, recorder, pool, grants)
                played.append(recorder.num_tokens / seconds)
                await renew(engine, manifest, UpdateMode.RECOMPUTE)
                seconds = await _ask(engine, recorder, config.engine.max_running)
                asked.append(recorder.num_tokens / seconds)
    finally:
        await pool.close()
    return Share(actor=max(played), raw=max(asked))


def _grants(source: Source, num_groups: int) -> list[Grant]:
    rng = Random(0)
    grants = []
    for index in range(num_groups):
        env = source.train[index % len(source.train)]
        config = source.draw(env, rng, Split.TRAIN)
        task = source.task(env, config, seed=rng.getrandbits(31))
        members = list(range(GROUP_SIZE))
        grants.append(Grant(group_id=f"g{index}", task=task, members=members))
    return grants


async def _play(config: RunConfig, engine: Engine, pool: EnvPool, grants: list[Grant]) -> float:
    """Seconds in which an actor plays all of them, a group whenever there is room for it."""
    actor = await Actor.start(
        name="bench",
        engine=engine,
        sessions=pool,
        tokens=await asyncio.to_thread(ChatTokens.load, config.model.path),
        limits=Limits.of(config.rollout),
    )
    begun = time.perf_counter()
    ended = await play(actor, grants, room=config.engine.max_running)
    seconds = time.perf_counter() - begun
    await actor.close()
    for rollout in ended:
        assert not rollout.stop.is_fault, f"{rollout.task_id}: {rollout.error}"
    return seconds


async def _ask(engine: Engine, recorder: Recorder, room: int) -> float:
    """Seconds in which the engine serves the same requests, each turn after the one before."""
    free = asyncio.Semaphore(room)

    async def ask(chain: Chain) -> None:
        said: list[int] = []
        for prompt, count, seed in chain:
            # With its own replies in it, which are in the cache: they are the same only where seeds count.
            asked = [*said[: len(prompt)], *prompt[len(said) :]]
            reply = await engine.generate(asked, Sampling(max_tokens=count, seed=seed))
            said = [*asked, *reply.token_ids]
        free.release()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as members:
        for chains in recorder.asked.values():
            for _ in chains:  # a group begins as a whole
                await free.acquire()
            for chain in chains.values():
                members.create_task(ask(chain))
    return time.perf_counter() - begun
