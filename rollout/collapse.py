"""Whether a run has collapsed: reward, effective samples or entropy beyond a bound for many steps.

A collapse follows an apparently healthy rise and is total, so that only a watch sees it in time. The
plateau of the reward is watched beside it: how long ago the best was.
"""

import logging
import statistics
from collections import deque
from collections.abc import Mapping

from configs.schema import AlarmSection

logger = logging.getLogger(__name__)


class Collapse:
    """Watches the steps of one part of a run; a resumed one begins anew."""

    def __init__(self, section: AlarmSection) -> None:
        self._section = section
        self._rewards: deque[float] = deque(maxlen=section.steps)
        self._best = float("-inf")
        self._since_best = 0
        self._below = {"loss/ess": 0, "loss/entropy": 0}
        self._is_on = False

    def stepped(self, step: int, values: Mapping[str, float | int]) -> dict[str, float | int]:
        """Take in the values of a step; returns what is to be noted with them, and warns."""
        found = [self._reward(values), *self._low(values)]
        signs = [sign for sign in found if sign]
        noted: dict[str, float | int] = {"alarm/signs": len(signs)}
        if self._best > float("-inf"):
            noted |= {"reward/best_mean": self._best, "reward/since_best_steps": self._since_best}
        if signs and not self._is_on:
            logger.warning(
                "COLLAPSE at step %d: %s. What was learned is going, or gone: stop, and begin again from "
                "an earlier checkpoint with a lower learner.lr, a lower rollout.max_lag or another "
                "learner.loss.correction; look at loss/clip_frac and kl/engine_max of the steps before",
                step,
                "; ".join(signs),
            )
        elif self._is_on and not signs:
            logger.warning("no sign of collapse any more at step %d", step)
        self._is_on = bool(signs)
        return noted

    def _reward(self, values: Mapping[str, float | int]) -> str:
        """What is wrong with the reward; empty where nothing is."""
        if "reward/all_mean" not in values:
            return ""
        self._rewards.append(float(values["reward/all_mean"]))
        if len(self._rewards) < self._section.steps:
            return ""
        mean = statistics.fmean(self._rewards)
        self._since_best += 1
        if mean > self._best:
            self._best, self._since_best = mean, 0
        if self._best <= 0 or mean >= self._section.reward_frac * self._best:
            return ""
        return (
            f"the mean reward of {self._section.steps} steps is {mean:.3f}, and was {self._best:.3f} "
            f"{self._since_best} steps ago"
        )

    def _low(self, values: Mapping[str, float | int]) -> list[str]:
        """What was below its bound for so many steps."""
        bounds = {"loss/ess": self._section.ess_min, "loss/entropy": self._section.entropy_min}
        signs = []
        for key, bound in bounds.items():
            is_low = key in values and values[key] < bound
            self._below[key] = self._below[key] + 1 if is_low else 0
            if self._below[key] >= self._section.steps:
                signs.append(f"{key} is below {bound:g} for {self._below[key]} steps")
        return signs
