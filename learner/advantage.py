"""Rewards of one group become advantages: pure functions, chosen by name from `ADVANTAGES`.

G: unfaulted rollouts of the group. Every row of a rollout gets the rollout's advantage.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

# Added to the standard deviation, so that nearly equal rewards are not blown up to +-1.
STD_EPS = 1e-6

Advantage = Callable[[Sequence[float | None]], npt.NDArray[np.float64]]


def grpo(rewards_G: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """`(r - mean) / (std + STD_EPS)` with the population std; 0 for equal rewards.

    Source: GRPO with outcome supervision, DeepSeekMath, arXiv 2402.03300, section 4.1.2.
    Raises ValueError for a faulted rollout (None) and for a reward that is not finite.
    """
    rewards = _checked(rewards_G)
    # The mean of equal floats may differ from them by rounding: their advantage is exactly 0.
    if rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPS)


def grpo_no_std(rewards_G: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """`r - mean`: hard and easy groups are not weighted up by their small spread.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2. Raises ValueError as `grpo` does.
    """
    rewards = _checked(rewards_G)
    if rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    return rewards - rewards.mean()


def rloo(rewards_G: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """`r - mean of the others' rewards`, an unbiased baseline; 0 in a group of one.

    Source: RLOO, arXiv 2402.14740. Raises ValueError as `grpo` does.
    """
    rewards = _checked(rewards_G)
    if rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    return rewards - others


def maxrl(rewards_G: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """`(r - mean) / mean`: the rarer a success, the more it weighs; 0 where nothing succeeded.

    With rewards of 0 and 1 this is an estimate of the gradient of log success, cut off at as many
    terms as there are rollouts. Source: MaxRL, arXiv 2602.02710. Raises ValueError
    as `grpo` does, and for a reward below 0, of which there is no likelihood.
    """
    rewards = _checked(rewards_G)
    if rewards.min() < 0:
        raise ValueError(
            f"rewards {rewards.tolist()} include one below 0, of which maxrl knows no meaning: set "
            'learner.loss.advantage="grpo"'
        )
    if rewards.min() == rewards.max():
        return np.zeros_like(rewards)
    return rewards / rewards.mean() - 1.0


ADVANTAGES: dict[str, Advantage] = {
    "grpo": grpo,
    "grpo_no_std": grpo_no_std,
    "rloo": rloo,
    "maxrl": maxrl,
}


def _checked(rewards_G: Sequence[float | None]) -> npt.NDArray[np.float64]:
    if not rewards_G:
        raise ValueError("a group without rollouts has no advantages")
    if any(reward is None for reward in rewards_G):
        raise ValueError(
            f"rewards {list(rewards_G)} include a rollout without a verdict: faulted and cancelled "
            "rollouts must be left out of the group before it is trained on"
        )
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards {list(rewards_G)} are not all finite")
    return rewards
