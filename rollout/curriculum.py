"""Which task comes next: pools by weight, environments evenly, configurations of the training split.

The n-th task depends on the run's seed and n alone, so the cursor is the whole state. Requeued tasks
come first.
"""

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from envpool.source import PoolSource
from envpool.task import Split, Task


@dataclass(slots=True, kw_only=True, frozen=True)
class Share:
    """A pool in the mixture: its weight and the environments trained on."""

    source: PoolSource
    weight: float
    envs: tuple[str, ...]


@dataclass(slots=True, kw_only=True, frozen=True)
class Draw:
    """A drawn task; `attempt` counts how often it was requeued."""

    task: Task
    attempt: int = 0


class Curriculum:
    """Draws training tasks from the mixture of pools."""

    def __init__(self, shares: Mapping[tuple[str, str], Share], *, seed: int) -> None:
        """`shares` is keyed by (pool, version)."""
        self._shares = dict(shares)
        self._seed = seed
        self._requeued: deque[Draw] = deque()
        self.cursor = 0

    def next(self) -> Draw:
        """The next task: a requeued one, else a new configuration of the training split."""
        if self._requeued:
            return self._requeued.popleft()
        rng = random.Random(f"{self._seed}/{self.cursor}")
        self.cursor += 1
        shares = list(self._shares.values())
        (share,) = rng.choices(shares, weights=[share.weight for share in shares])
        env = rng.choice(share.envs)
        config = share.source.draw(env, rng, Split.TRAIN)
        return Draw(task=share.source.task(env, config, seed=rng.getrandbits(31)))

    def requeue(self, draw: Draw) -> None:
        """Draw this task again before any new one."""
        self._requeued.append(draw)
