"""What the episodes of an evaluation set come to: avg@k, pass@k, pass^k, with intervals over tasks.

k is the number of samples of a task. Tasks are the independent units: samples of one task succeed
and fail together, so that an interval over episodes would be too narrow. Faulted episodes are counted
apart, never as zeros.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

# Two-sided 95 % of a normal distribution.
Z95 = 1.96

# A sample passes with the full reward; partial credit counts in the mean only.
FULL_REWARD = 1.0


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over tasks, with a 95 % interval."""

    mean: float
    low: float
    high: float
    tasks: int
    """Tasks with enough graded samples to count."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Mean reward over the tasks of a set (avg@k), with a 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None
    count: int
    """Graded episodes."""
    faults: int
    by_env: dict[str, float]
    samples: int = 1
    """k: episodes of each task."""
    tasks: int = 0
    """Tasks with a graded episode."""
    pass_at: dict[int, Estimate] = {}
    """pass@j for j = 1, 2, 4, ... and k: at least one of j samples passes. Empty when k is 1."""
    pass_all: dict[int, Estimate] = {}
    """pass^j: all of j samples pass."""


class Judged(Protocol):
    """A rollout as far as scores go; its row in the log is one, too."""

    @property
    def group_id(self) -> str: ...
    @property
    def env(self) -> str: ...
    @property
    def reward(self) -> float | None: ...


Scores = dict[str, dict[str, Score]]
"""`{set: {mode: score}}`."""


def score(rollouts: Sequence[Judged], *, samples: int = 1) -> Score:
    """Score the episodes of a set; those of one task share their group id."""
    by_task: dict[str, list[float]] = {}
    env_of: dict[str, str] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            by_task.setdefault(rollout.group_id, []).append(rollout.reward)
            env_of[rollout.group_id] = rollout.env
    count = sum(map(len, by_task.values()))
    faults = len(rollouts) - count
    if not count:
        return Score(
            mean=None, low=None, high=None, count=0, faults=faults, by_env={}, samples=samples
        )
    means = {task: statistics.fmean(rewards) for task, rewards in by_task.items()}
    low, high = interval(list(means.values()), most=count)
    by_env: dict[str, list[float]] = {}
    for task, mean in means.items():
        by_env.setdefault(env_of[task], []).append(mean)
    passes = [
        (len(rewards), sum(reward >= FULL_REWARD for reward in rewards))
        for rewards in by_task.values()
    ]
    sizes = sizes_up_to(samples) if samples > 1 else []
    return Score(
        mean=statistics.fmean(means.values()),
        low=low,
        high=high,
        count=count,
        faults=faults,
        by_env={env: statistics.fmean(values) for env, values in sorted(by_env.items())},
        samples=samples,
        tasks=len(means),
        pass_at=_estimates(pass_at, passes, sizes),
        pass_all=_estimates(pass_all, passes, sizes),
    )


def pass_at(n: int, c: int, k: int) -> float:
    """Chance that at least one of k samples passes, from n >= k samples of which c passed.

    The unbiased estimator 1 - C(n-c, k) / C(n, k) of Chen et al. (2021, arXiv 2107.03374).
    """
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def pass_all(n: int, c: int, k: int) -> float:
    """Chance that all of k samples pass: C(c, k) / C(n, k), unbiased.

    pass^k of Yao et al. (2024, tau-bench, arXiv 2406.12045).
    """
    return math.comb(c, k) / math.comb(n, k)


def sizes_up_to(samples: int) -> list[int]:
    """The j for which pass@j is given: powers of two, and `samples` itself."""
    powers = {1 << power for power in range(samples.bit_length())}
    return sorted(powers | {samples})


def interval(values: Sequence[float], *, most: float) -> tuple[float, float]:
    """A 95 % interval of the mean of independent `values`, one per task.

    In 0..1 it is Wilson's score interval (1927) at the effective number of episodes, as for clustered
    proportions (Dean and Pagano 2015, J. Surv. Stat. Methodol. 3, 484): n = p(1-p) / (variance of
    the mean over tasks). It lies between the number of tasks, where the samples of a task agree, and
    `most`, where they are independent. With one sample and rewards 0 or 1 it is Wilson's interval of
    the episodes. A normal or bootstrap interval has no width where all tasks agree, and covered
    49-95 % in simulations of 10-100 tasks and 4-8 samples, where this one covered 86-98 %.

    Values outside 0..1 (rewards of another scale) have a normal interval of their mean.
    """
    number = len(values)
    mean = statistics.fmean(values)
    if min(values) < 0 or max(values) > 1:
        spread = statistics.stdev(values) if number > 1 else 0.0
        half = Z95 * spread / math.sqrt(number)
        return mean - half, mean + half
    between, full = statistics.pvariance(values, mean), mean * (1 - mean)
    # Where all tasks agree on 0 or on 1, nothing shows that samples differ: one episode per task.
    effective: float = number
    if full > 0:
        effective = min(number * full / between, most) if between > 0 else most
    centre = (mean + Z95**2 / (2 * effective)) / (1 + Z95**2 / effective)
    root = math.sqrt(full / effective + Z95**2 / (4 * effective**2))
    half = Z95 * root / (1 + Z95**2 / effective)
    # The mean is inside but for rounding at 0 and 1.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def _estimates(
    estimator: Callable[[int, int, int], float],
    passes: Sequence[tuple[int, int]],
    sizes: Sequence[int],
) -> dict[int, Estimate]:
    """`estimator` averaged over the tasks with enough samples; (n, c) of each in `passes`."""
    found: dict[int, Estimate] = {}
    for size in sizes:
        enough = [(n, c) for n, c in passes if n >= size]
        if not enough:
            continue  # faults left no task with that many
        values = [estimator(n, c, size) for n, c in enough]
        # Disjoint draws of `size` samples: the overlapping ones tell at least as much.
        low, high = interval(values, most=sum(n for n, _ in enough) / size)
        found[size] = Estimate(mean=statistics.fmean(values), low=low, high=high, tasks=len(values))
    return found
