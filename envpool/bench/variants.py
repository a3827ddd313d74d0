"""The environments of the benchmark: some take their time as tools do. `pool` is a pool source.

The sleeps are drawn from the seed of `reset`, so that environment number n of every system sleeps at the
same steps.
"""

import time
from collections.abc import Mapping
from random import Random
from typing import Any

import msgspec

from envpool.env import Info, ToolEnv, tool
from envpool.envs.sum_list import SumList

# A slow call: one step in fifty, as long as a short database query.
SLOW_FRACTION = 0.02
SLOW_S = 0.02
# A long tail: the median, and the sigma of the logarithm. The mean is 1.6 ms, one step in a thousand 11 x.
TAIL_MEDIAN_S = 0.001
TAIL_SIGMA = 1.0
# A tool gives up before the deadline of a step.
TAIL_MAX_S = 1.0


class SlowSum(SumList):
    """`SumList`, of whose steps a few are slow."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, Info]:
        self._sleeps = Random(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        seconds = self._draw_s(self._sleeps)
        if seconds:
            time.sleep(seconds)
        return super().step(action)

    def _draw_s(self, rng: Random) -> float:
        return SLOW_S if rng.random() < SLOW_FRACTION else 0.0


class LongTailSum(SlowSum):
    """`SumList`, whose steps take lognormal times."""

    def _draw_s(self, rng: Random) -> float:
        return min(TAIL_MAX_S, TAIL_MEDIAN_S * rng.lognormvariate(0.0, TAIL_SIGMA))


class Tally(ToolEnv):
    """Answer: the total. Every observation depends on the seed and on all calls before it."""

    class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """Nothing is hidden but the seed."""

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {}

    def setup(self, config: Config) -> None:
        self._total = 0

    def statement(self) -> str:
        return "Add numbers."

    def reference(self) -> int:
        return self._total

    @tool
    def add(self, number: int) -> int:
        """Add a number and one that chance gives.

        Args:
            number: What to add.
        """
        self._total += number + int(self.np_random.integers(1_000_000))
        return self._total


pool: dict[str, type[ToolEnv]] = {
    "sum_list": SumList,
    "sum_list_slow": SlowSum,
    "sum_list_long_tail": LongTailSum,
    "tally": Tally,
}
