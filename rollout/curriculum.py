"""Which task comes next: pools by weight, environments by `draw`, configurations of the training split.

The n-th task depends on the run's seed, n, the pools there are, and with `draw="signal"` on the shares
of groups with signal seen so far. Requeued tasks come first.
"""

import logging
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from envpool.source import Source
from envpool.task import PoolKey, Split, Task

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
# Weight of the newest group in an environment's share of groups with signal.
NEWEST = 0.05
# No environment is drawn less often than this share of signal would have it: policies change.
LEAST_SIGNAL = 0.15


class Curriculum:
    """Draws training tasks from the mixture of pools."""

    def __init__(
        self,
        shares: Mapping[PoolKey, Share],
        *,
        seed: int,
        draw: str = "even",
        bars: Bars | None = None,
    ) -> None:
        """`draw` is `even` or `signal`."""
        self._shares = dict(shares)
        self._bars = bars
        self._left_out: set[PoolKey] = set()
        self._seed = seed
        self._draw = draw
        self.signal: dict[str, float] = {}
        """Share of recent groups with signal, by `pool/env`; 1 for one not seen yet."""
        self._requeued: deque[Draw] = deque()
        self.cursor = 0

    def next(self) -> Draw:
        """The next task: a requeued one, else a new configuration of the training split."""
        while self._requeued:
            draw = self._requeued.popleft()
            if self._bars is None or not self._bars.bars(draw.task):
                return draw
        rng = random.Random(f"{self._seed}/{self.cursor}")
        self.cursor += 1
        while True:
            shares = self._mixture()
            (share,) = rng.choices(shares, weights=[share.weight for share in shares])
            (env,) = rng.choices(share.envs, weights=[self._weight(share, e) for e in share.envs])
            for _ in range(MAX_REDRAWS):
                config = share.source.draw(env, rng, Split.TRAIN)
                task = share.source.task(env, config, seed=rng.getrandbits(31))
                if self._bars is None or not self._bars.bars(task):
                    return Draw(task=task)
            assert self._bars is not None
            # It ends: there is one environment less to draw from each time.
            self._bars.bar_env(share.source.key, env, "every task drawn of it is quarantined")

    def _mixture(self) -> list[Share]:
        """The pools with what of them may be drawn. Raises NothingToDrawError."""
        bars = self._bars
        if bars is None:
            return list(self._shares.values())
        left = []
        for key, share in self._shares.items():
            envs = tuple(env for env in share.envs if not bars.bars_env(key, env))
            if envs:
                left.append(share if len(envs) == len(share.envs) else replace(share, envs=envs))
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

    def put(self, key: PoolKey, share: Share) -> None:
        """Draw from a version of a pool from now on, or with another weight or environments."""
        if key not in self._shares:
            # What was seen of another version of it says nothing about this one.
            of_pool = f"{key.name}/"
            self.signal = {k: v for k, v in self.signal.items() if not k.startswith(of_pool)}
        self._shares[key] = share

    def drop(self, key: PoolKey) -> list[Draw]:
        """Draw from it no more; returns the requeued tasks of it, which are dropped."""
        del self._shares[key]
        dropped = [draw for draw in self._requeued if draw.task.pool_key == key]
        self._requeued = deque(draw for draw in self._requeued if draw.task.pool_key != key)
        return dropped

    def has(self, key: PoolKey) -> bool:
        """Whether it draws from a version of a pool."""
        return key in self._shares

    def note(self, task: Task, *, has_signal: bool) -> None:
        """A group of `task` was scored; without signal all its rewards were equal."""
        key = f"{task.pool}/{task.env}"
        before = self.signal.get(key, 1.0)
        self.signal[key] = before + NEWEST * (has_signal - before)

    def _weight(self, share: Share, env: str) -> float:
        """Squared, since a group without signal is played and then thrown away."""
        if self._draw == "even":
            return 1.0
        return max(LEAST_SIGNAL, self.signal.get(f"{share.source.name}/{env}", 1.0)) ** 2

    @property
    def requeued(self) -> list[Draw]:
        """The tasks to draw before new ones."""
        return list(self._requeued)

    def restore(self, cursor: int, signal: Mapping[str, float]) -> None:
        """Go on from a checkpoint's place in the tasks."""
        self.cursor = cursor
        self.signal = dict(signal)

    def requeue(self, draw: Draw) -> None:
        """Draw this task again before any new one."""
        self._requeued.append(draw)
