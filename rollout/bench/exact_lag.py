"""Training at one exact lag, in one process and in turns: generate, train, load, generate, ...

A batch waits until `lag` more versions were published before it is trained on. So every token of it is
that old, but in the first `lag` updates, whose batches the initial weights sampled:

    version that samples     0 0 0 0 1 2 3 ...
    update that trains it    1 2 3 4 5 6 7 ...         lag 3

Engine, environments and trainer are those of a run; what is missing is everything that makes lags vary.
"""

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from random import Random
from typing import Any

import msgspec

from envpool.pool import EnvPool
from envpool.source import Source
from envpool.task import Split, Task
from rollout.actor import Actor
from rollout.bench.playing import play
from rollout.engine import Engine, UpdateMode
from rollout.engines import start_engine
from rollout.episode import Limits
from rollout.run import Checked
from rollout.scores import score
from rollout.tokens import ChatTokens
from rollout.types import Grant, Rollout, TrainBatch, TrainGroup

# As a run finds it, see `launch.py`: this package does not know the learner.
TRAINER = "learner.trainer:make_trainer"

# Groups whose rewards are all equal teach nothing. If all of a batch are, others are played, so often.
MAX_WAVES = 4

# The reward of an update is that of its fresh groups; means of so many are compared.
WINDOW = 5


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one training."""

    before: float
    """Mean reward of evaluation tasks, sampled, with the initial weights."""
    after: float
    best: float
    """The highest mean reward of `WINDOW` updates in a row."""
    last: float
    """That of the last ones."""
    updates: int
    """Those that were trained; fewer than asked for where no group had a signal any more."""
    wall_s: float
    rewards: list[float]
    """Of all groups that were generated after each update."""
    metrics: dict[str, list[float]]
    """The learner's, by update."""

    @property
    def is_collapsed(self) -> bool:
        """Whether what it ends with is less than half of its best."""
        return self.after < 0.5 * max(self.best, self.before)


class ExactLag:
    """One training. Made by `start`, inside an event loop; ended by `close`."""

    def __init__(
        self, checked: Checked, trainer: Any, engine: Engine, pool: EnvPool, actor: Actor
    ) -> None:
        self._config = checked.config
        self._sources = list(checked.sources.values())
        self._trainer = trainer
        self._engine = engine
        self._pool = pool
        self._actor = actor
        self._rng = Random(f"{checked.config.run.seed}/exact_lag")
        self._num_groups = 0

    @classmethod
    async def start(cls, checked: Checked, run_dir: Path) -> "ExactLag":
        """Load model, environments and trainer. Published weights and the like go to `run_dir`."""
        config = checked.config
        make = await asyncio.to_thread(resolve_name, TRAINER)
        trainer = await asyncio.to_thread(make, config, run_dir)
        engine = await start_engine(
            config,
            config.model.path,
            section=config.engine,
            version=0,
            log=run_dir / "engine.log",
        )
        pool = await EnvPool.start(config.pools, limits=config.envpool)
        actor = await Actor.start(
            name="actor",
            engine=engine,
            sessions=pool,
            tokens=await asyncio.to_thread(ChatTokens.load, config.model.path),
            limits=Limits.of(config.rollout),
        )
        return cls(checked, trainer, engine, pool, actor)

    async def close(self) -> None:
        await self._actor.close()
        await self._pool.close()
        await asyncio.to_thread(self._trainer.close)

    async def train(self, updates: int, tasks: Sequence[Task]) -> Outcome:
        """Take `updates` optimizer steps; evaluate on `tasks` before and after."""
        begun = time.monotonic()
        before = await self._evaluate(tasks)
        lag = self._config.rollout.max_lag
        waiting: deque[list[TrainGroup]] = deque()
        rewards: list[float] = []
        metrics: dict[str, list[float]] = {}
        num_made = num_trained = 0
        while num_trained < updates:
            while num_made < updates and len(waiting) <= lag:
                groups, reward = await self._batch()
                if not groups:
                    break
                waiting.append(groups)
                rewards.append(reward)
                num_made += 1
            if not waiting:  # the policy has nothing left to learn from
                break
            num_trained += 1
            batch = TrainBatch(
                step=num_trained,
                version=num_trained - 1,
                publish_version=num_trained,
                groups=waiting.popleft(),
                max_lag=lag,
            )
            report = await asyncio.to_thread(self._trainer.train, batch)
            for name, value in report.metrics.items():
                metrics.setdefault(name, []).append(value)
            manifest = report.manifest
            if manifest is None:  # it is still being written
                manifest = await asyncio.to_thread(self._trainer.published, num_trained)
            await self._engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        means = [
            statistics.fmean(rewards[end - WINDOW : end]) for end in range(WINDOW, len(rewards) + 1)
        ] or [0.0]
        return Outcome(
            before=before,
            after=await self._evaluate(tasks),
            best=max(means),
            last=means[-1],
            updates=num_trained,
            wall_s=time.monotonic() - begun,
            rewards=rewards,
            metrics=metrics,
        )

    async def _batch(self) -> tuple[list[TrainGroup], float]:
        """The groups with a signal of a step's number, and the mean reward of all that were played."""
        found: list[TrainGroup] = []
        rewards: list[float] = []
        for _ in range(MAX_WAVES):
            grants = [self._grant() for _ in range(self._config.rollout.groups_per_step)]
            for rollouts in await self._play(grants):
                graded = [one for one in rollouts if one.reward is not None and one.rows]
                values = [one.reward for one in graded if one.reward is not None]
                rewards += values
                if len(set(values)) > 1:
                    first = graded[0]
                    group = TrainGroup(group_id=first.group_id, pool=first.pool, rollouts=graded)
                    found.append(group)
            if found:
                break
        return found, statistics.fmean(rewards) if rewards else 0.0

    def _grant(self) -> Grant:
        """A task of an environment of the training split, drawn uniformly."""
        sources = [source for source in self._sources if source.train]
        source: Source = self._rng.choice(sources)
        env = self._rng.choice(list(source.train))
        config = source.draw(env, self._rng, Split.TRAIN)
        self._num_groups += 1
        return Grant(
            group_id=f"g{self._num_groups}",
            task=source.task(env, config, seed=self._rng.getrandbits(31)),
            members=list(range(self._config.rollout.group_size)),
            temperature=self._config.rollout.temperature,
        )

    async def _evaluate(self, tasks: Sequence[Task]) -> float:
        """Mean reward of one sampled episode of each task."""
        grants = [
            Grant(group_id=f"eval/{index}", task=task, members=[0], is_eval=True)
            for index, task in enumerate(tasks)
        ]
        played = await self._play(grants)
        found = score([one for rollouts in played for one in rollouts])
        if found.mean is None:  # no success at all, and none that could be measured, differ
            raise RuntimeError(f"all {found.faults} episodes of the evaluation faulted")
        return found.mean

    async def _play(self, grants: Sequence[Grant]) -> list[list[Rollout]]:
        """The rollouts of each grant, by member, as many at once as the engine has room for."""
        done: dict[str, list[Rollout]] = {grant.group_id: [] for grant in grants}
        for rollout in await play(self._actor, grants, room=self._config.engine.max_running):
            done[rollout.group_id].append(rollout)
        return [sorted(rollouts, key=lambda one: one.member) for rollouts in done.values()]
