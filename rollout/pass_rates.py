"""What scored groups say of environments, and of single tasks where the same ones come again.

Policies change, so what was seen fades with time. Time is counted in rounds: one round is as many
scored groups as there are environments to train on; drawn evenly, each of them has one group in it.
"""

import math
from collections.abc import Sequence

import msgspec

from envpool.task import PoolKey, Task

# Visits, if all were drawn evenly, until a group counts 1/e of a new one. A task is visited rarely, and
# the policy is another one by then.
ENV_VISITS = 10.0
TASK_VISITS = 3.0
# An estimate of less weight is as good as none.
FORGOTTEN = 0.5
# Weight of the newest group in an environment's share of groups with signal.
NEWEST = 0.05


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Means over the groups of an environment or a task, newer ones counting more."""

    rate: float
    """Of the rewards, each taken between 0 and 1: where these are 0 or 1, the share passed."""
    variance: float
    """Of the rewards within a group: 0 if all are equal, p(1 - p) in the mean for a task passed with p."""
    weight: float
    """Groups behind it, as they counted at `at`."""
    at: float
    """The round of the newest of them."""
    fades_in: float
    """Rounds in which it comes to count 1/e of that."""

    def weight_at(self, now: float) -> float:
        """What it counts at a later round, in groups; 0 once it is forgotten."""
        weight = self.weight * math.exp((self.at - now) / self.fades_in)
        return weight if weight >= FORGOTTEN else 0.0


class PoolRates(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of one version of a pool."""

    key: PoolKey
    signal: dict[str, float] = {}
    """Share of recent groups with signal by environment; 1 for one that is not here."""
    envs: dict[str, Estimate] = {}
    tasks: dict[str, Estimate] = {}
    """By task id, of those that may come again."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as a checkpoint keeps it."""

    now: float = 0.0
    """Rounds so far."""
    pools: list[PoolRates] = []


class PassRates:
    """Estimates for the versions of pools that are drawn from; a new one starts without any."""

    def __init__(self) -> None:
        self.now = 0.0
        self._pools: dict[PoolKey, PoolRates] = {}

    def add(self, key: PoolKey) -> None:
        """Keep what is seen of a version from now on."""
        self._pools.setdefault(key, PoolRates(key=key))

    def drop(self, key: PoolKey) -> None:
        """Forget a version."""
        del self._pools[key]

    def note(
        self, task: Task, rewards: Sequence[float], *, num_envs: int, num_tasks: int | None
    ) -> None:
        """A group was scored, of one of the `num_envs` environments that are drawn from.

        `num_tasks`: how many its environment has, None where it makes ever new ones.
        """
        self.now += 1 / num_envs
        pool = self._pools[task.pool_key]
        before = pool.signal.get(task.env, 1.0)
        pool.signal[task.env] = before + NEWEST * ((len(set(rewards)) > 1) - before)
        pool.envs[task.env] = self._joined(pool.envs.get(task.env), rewards, ENV_VISITS)
        if num_tasks is not None:
            before = pool.tasks.get(task.id)
            pool.tasks[task.id] = self._joined(before, rewards, TASK_VISITS * max(1, num_tasks))

    def signal(self, key: PoolKey, env: str) -> float:
        """Share of an environment's recent groups with signal; 1 before the first."""
        return self._pools[key].signal.get(env, 1.0)

    def envs(self, key: PoolKey) -> dict[str, Estimate]:
        """By environment; `weight_at(now)` says what each still counts."""
        return self._pools[key].envs

    def tasks(self, key: PoolKey) -> dict[str, Estimate]:
        """By task id."""
        return self._pools[key].tasks

    def records(self) -> Rates:
        """A copy, without what is forgotten."""
        return Rates(
            now=self.now,
            pools=[
                PoolRates(
                    key=pool.key,
                    signal=dict(pool.signal),
                    envs=self._remembered(pool.envs),
                    tasks=self._remembered(pool.tasks),
                )
                for pool in self._pools.values()
            ],
        )

    def restore(self, rates: Rates) -> None:
        """Go on from a checkpoint, with what it has of the versions that are drawn from."""
        self.now = rates.now
        for pool in rates.pools:
            if pool.key in self._pools:
                self._pools[pool.key] = pool

    def _remembered(self, estimates: dict[str, Estimate]) -> dict[str, Estimate]:
        return {name: one for name, one in estimates.items() if one.weight_at(self.now)}

    def _joined(self, old: Estimate | None, rewards: Sequence[float], fades_in: float) -> Estimate:
        """An estimate with one group more."""
        clipped = [min(1.0, max(0.0, reward)) for reward in rewards]
        rate = sum(clipped) / len(clipped)
        # Without bias: of two members, the mean of many such is p(1 - p) as it is of sixteen.
        variance = sum((one - rate) ** 2 for one in clipped) / max(1, len(clipped) - 1)
        weight = 1.0
        if old is not None and (before := old.weight_at(self.now)):
            weight += before
            rate = old.rate + (rate - old.rate) / weight
            variance = old.variance + (variance - old.variance) / weight
        return Estimate(rate=rate, variance=variance, weight=weight, at=self.now, fades_in=fades_in)
