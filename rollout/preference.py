"""How much each environment, and each task where tasks come again, is preferred: `rollout.draw`.

    uniform   all alike
    band      those whose pass rate is in a band, or not known
    adaptive  by the variance of rewards within their groups: p(1 - p) for a task passed with p
    signal    by the squared share of groups with signal, environments only

With `band` and `adaptive` the share `explore` of draws is uniform all the same.
"""

from collections.abc import Sequence

from configs.schema import RolloutSection
from envpool.task import PoolKey, Task
from rollout.pass_rates import Estimate, PassRates

# Variance of rewards that are 0 or 1 as often: nothing teaches more, and unknown environments may.
MOST_VARIANCE = 0.25
# Groups for which that counts beside those seen: an environment without signal is soon left, and comes
# back as what was seen of it fades.
ENV_PRIOR = 0.1
# Groups for which its environment's mean counts beside those seen of a task.
TASK_PRIOR = 0.5
# No environment is drawn less often than this share of signal would have it: policies change.
LEAST_SIGNAL = 0.15


class Preference:
    """Shares of draws, by what was seen of environments and tasks."""

    def __init__(self, rates: PassRates, rollout: RolloutSection) -> None:
        self._rates = rates
        self._draw = rollout.draw
        self._low, self._high = rollout.band_low, rollout.band_high
        self.tells_tasks_apart = rollout.draw in ("band", "adaptive")
        """Whether one task of an environment is preferred to another."""
        self._explore = rollout.explore if self.tells_tasks_apart else 0.0

    def envs(self, key: PoolKey, envs: Sequence[str]) -> list[float]:
        """The share of each of these environments of a pool in what is drawn of it."""
        if self._draw == "uniform":
            return [1 / len(envs)] * len(envs)
        if self._draw == "signal":
            # Squared, since a group without signal is played and then thrown away.
            signals = (self._rates.signal(key, env) for env in envs)
            return self._shares([max(LEAST_SIGNAL, signal) ** 2 for signal in signals])
        known = self._rates.envs(key)
        return self._shares([self._value(known.get(env), MOST_VARIANCE, ENV_PRIOR) for env in envs])

    def tasks(self, tasks: Sequence[Task]) -> list[float]:
        """The share of each of these tasks of one environment."""
        first = tasks[0]
        known = self._rates.tasks(first.pool_key)
        env = self._rates.envs(first.pool_key).get(first.env)
        mean = self._value(env, MOST_VARIANCE, ENV_PRIOR)
        return self._shares([self._value(known.get(one.id), mean, TASK_PRIOR) for one in tasks])

    def _value(self, estimate: Estimate | None, prior: float, prior_weight: float) -> float:
        """What a group is expected to teach; `prior` of what nothing is known of."""
        weight = 0.0 if estimate is None else estimate.weight_at(self._rates.now)
        if self._draw == "band":
            is_in = estimate is None or not weight or self._low < estimate.rate <= self._high
            return float(is_in)
        if estimate is None:
            return prior
        return (prior_weight * prior + weight * estimate.variance) / (prior_weight + weight)

    def _shares(self, values: Sequence[float]) -> list[float]:
        total = sum(values)
        if not total:  # none is in the band
            return [1 / len(values)] * len(values)
        evenly = self._explore / len(values)
        return [evenly + (1 - self._explore) * value / total for value in values]
