"""Find a hidden number by guesses that are answered with higher, lower or equal."""

from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from envpool.env import Oracle, ToolEnv, tool

MAX_NUMBER = 99
# Numbers to choose from, fewest and most, at level 0 and at the higher levels.
EASY = (8, 20)
HARD = (32, 64)


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`number` lies in `low..high`; the policy is told the two bounds."""

    low: Annotated[int, Meta(ge=0)]
    high: int
    number: int

    def __post_init__(self) -> None:
        if not self.low <= self.number <= self.high:
            raise ValueError(f"number={self.number} is outside {self.low}..{self.high}: move it in")


class GuessNumber(ToolEnv):
    """Answer: the number."""

    Config = Secret

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        width = rng.randint(*(HARD if level else EASY))
        low = rng.randint(1, MAX_NUMBER + 1 - width)
        high = low + width - 1
        return {"low": low, "high": high, "number": rng.randint(low, high)}

    def setup(self, config: Secret) -> None:
        self._secret = config

    def statement(self) -> str:
        return f"Find the number from {self._secret.low} to {self._secret.high}."

    def reference(self) -> int:
        return self._secret.number

    @tool
    def guess(self, number: int) -> str:
        """Compare the hidden number with yours: it is higher, lower or equal.

        Args:
            number: Your guess.
        """
        if self._secret.number == number:
            return "equal"
        return "higher" if self._secret.number > number else "lower"

    def oracle(self) -> Oracle:
        # The bounds are in the task statement, so reading them is no look at hidden state.
        words = self.statement().rstrip(".").split()
        low, high = int(words[-3]), int(words[-1])
        while low < high:
            middle = (low + high) // 2
            reply = yield "guess", {"number": middle}
            if reply == "equal":
                low = high = middle
            elif reply == "higher":
                low = middle + 1
            else:
                high = middle - 1
        yield "done", {"answer": low}
