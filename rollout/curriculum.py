"""Which task comes next: pools by weight, environments and tasks by `draw`, of the training split alone.

The n-th task depends on the run's seed, n, the pools there are, and unless `draw="uniform"` on the
groups scored so far. Requeued tasks come first.
"""

import logging
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from configs.schema import RolloutSection
from envpool.source import Source
from envpool.task import PoolKey, Split, Task
from rollout.metrics import Values
from rollout.pass_rates import PassRates, Rates
from rollout.preference import Preference

logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, frozen=True)
class Share:
    """A pool in the mixture: its weight and the environments trained on."""

    source: Source
    weight: float
    envs: tuple[str, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class Draw:
    """A drawn task; `attempt` counts how often it was requeued."""

    task: Task
    attempt: int = 0


class Bars(Protocol):
    """What must not be drawn."""

    def bars(self, task: Task) -> bool: ...
    def bars_env(self, key: PoolKey, env: str) -> bool: ...
    def bar_env(self, key: PoolKey, env: str, reason: str) -> None: ...


class NothingToDrawError(RuntimeError):
    """Every environment of every pool is in quarantine; the message says what to do."""


# Draws of one environment that may all be in quarantine before it is itself.
MAX_REDRAWS = 100
# Of so many tasks drawn evenly one is chosen by preference: none is drawn more than this times as often
# as evenly, and drawing costs the same however many there are.
CANDIDATES = 16
# Metrics name environments one by one up to this many.
MAX_NAMED_ENVS = 64


class Curriculum:
    """Draws training tasks from the mixture of pools."""

    def __init__(
        self,
        shares: Mapping[PoolKey, Share],
        rollout: RolloutSection,
        *,
        seed: int,
        bars: Bars | None = None,
    ) -> None:
        self._shares: dict[PoolKey, Share] = {}
        self._bars = bars
        self._left_out: set[PoolKey] = set()
        self._seed = seed
        self._rates = PassRates()
        self._preference = Preference(self._rates, rollout)
        self._requeued: deque[Draw] = deque()
        self.cursor = 0
        for key, share in shares.items():
            self.put(key, share)

    def next(self) -> Draw:
        """The next task: a requeued one, else one of the training split."""
        while self._requeued:
            draw = self._requeued.popleft()
            if self._bars is None or not self._bars.bars(draw.task):
                return draw
        rng = random.Random(f"{self._seed}/{self.cursor}")
        self.cursor += 1
        while True:
            shares = self._mixture()
            (share,) = rng.choices(shares, weights=[share.weight for share in shares])
            weights = self._preference.envs(share.source.key, share.envs)
            (env,) = rng.choices(share.envs, weights=weights)
            for _ in range(MAX_REDRAWS):
                tasks = self._candidates(share.source, env, rng)
                if tasks:
                    weights = self._preference.tasks(tasks) if len(tasks) > 1 else None
                    (task,) = rng.choices(tasks, weights=weights)
                    assert task.split is Split.TRAIN, f"{task.id} is for evaluation"
                    return Draw(task=task)
            assert self._bars is not None
            # It ends: there is one environment less to draw from each time.
            self._bars.bar_env(share.source.key, env, "every task drawn of it is quarantined")

    def _candidates(self, source: Source, env: str, rng: random.Random) -> list[Task]:
        """Tasks of an environment to choose from, without those in quarantine.

        It is one where tasks never come again, or are not told apart.
        """
        is_choosing = self._preference.tells_tasks_apart and source.count(env, Split.TRAIN)
        number = CANDIDATES if is_choosing else 1
        tasks = [
            source.task(env, source.draw(env, rng, Split.TRAIN), seed=rng.getrandbits(31))
            for _ in range(number)
        ]
        bars = self._bars
        return [task for task in tasks if bars is None or not bars.bars(task)]

    def _mixture(self) -> list[Share]:
        """The pools with what of them may be drawn. Raises NothingToDrawError."""
        left = self._left()
        for key in self._shares:
            if any(share.source.key == key for share in left):
                self._left_out.discard(key)
            elif key not in self._left_out:
                self._left_out.add(key)
                logger.error("pool %s is left out: all of it is quarantined", key.name)
        if not left:
            raise NothingToDrawError(
                f"all environments of {', '.join(key.name for key in self._shares)} are quarantined, so "
                "that there is nothing to train on: the log has the faults; correct the environments, or "
                "what they need"
            )
        return left

    def _left(self) -> list[Share]:
        bars = self._bars
        if bars is None:
            return list(self._shares.values())
        left = []
        for key, share in self._shares.items():
            envs = tuple(env for env in share.envs if not bars.bars_env(key, env))
            if envs:
                left.append(share if len(envs) == len(share.envs) else replace(share, envs=envs))
        return left

    def put(self, key: PoolKey, share: Share) -> None:
        """Draw from a version of a pool from now on, or with another weight or environments.

        What was seen of another version of it says nothing about this one.
        """
        self._shares[key] = share
        self._rates.add(key)

    def drop(self, key: PoolKey) -> list[Draw]:
        """Draw from it no more; returns the requeued tasks of it, which are dropped."""
        del self._shares[key]
        self._rates.drop(key)
        dropped = [draw for draw in self._requeued if draw.task.pool_key == key]
        self._requeued = deque(draw for draw in self._requeued if draw.task.pool_key != key)
        return dropped

    def has(self, key: PoolKey) -> bool:
        """Whether it draws from a version of a pool."""
        return key in self._shares

    def note(self, task: Task, rewards: Sequence[float]) -> None:
        """A group of `task` was scored: the rewards of its members. It may be of a pool that drains."""
        share = self._shares.get(task.pool_key)
        if share is None:
            return
        num_envs = sum(len(one.envs) for one in self._shares.values())
        num_tasks = share.source.count(task.env, Split.TRAIN)
        self._rates.note(task, rewards, num_envs=num_envs, num_tasks=num_tasks)

    def values(self) -> Values:
        """Pass rates and shares of draws, as flat metrics."""
        left = self._left()
        total = sum(share.weight for share in left)
        shares: dict[str, float] = {}
        rates: dict[str, float] = {}
        for share in left:
            key = share.source.key
            of_envs = self._preference.envs(key, share.envs)
            known = self._rates.envs(key)
            for env, part in zip(share.envs, of_envs, strict=True):
                name = f"curriculum/{key.name}/{env}"
                shares[name] = share.weight / total * part
                estimate = known.get(env)
                if estimate is not None and estimate.weight_at(self._rates.now):
                    rates[name] = estimate.rate
        if not shares:
            return {}
        entropy = -sum(part * math.log(part) for part in shares.values() if part)
        values: Values = {
            "curriculum/effective_envs": math.exp(entropy),
            "curriculum/measured_frac": len(rates) / len(shares),
        }
        if len(shares) <= MAX_NAMED_ENVS:
            values |= {f"{name}/share": part for name, part in shares.items()}
            values |= {f"{name}/pass_rate": rate for name, rate in rates.items()}
        return values

    @property
    def rates(self) -> Rates:
        """What was seen of what is drawn from, for a checkpoint."""
        return self._rates.records()

    @property
    def requeued(self) -> list[Draw]:
        """The tasks to draw before new ones."""
        return list(self._requeued)

    def restore(self, cursor: int, rates: Rates) -> None:
        """Go on from a checkpoint's place in the tasks, with what it has seen of these pools."""
        self.cursor = cursor
        self._rates.restore(rates)

    def requeue(self, draw: Draw) -> None:
        """Draw this task again before any new one."""
        self._requeued.append(draw)
