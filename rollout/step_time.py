"""`StepTime`: where the time between two optimizer steps goes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum

from rollout.metrics import Values


class Spent(StrEnum):
    """What the learner's side of a run does when it does not train."""

    WAITING = "wait_rollout"
    """No batch is ready."""
    PAUSED = "paused"
    """Somebody paused the run."""
    SAVING = "save"
    """The learner writes a checkpoint."""


class StepTime:
    """Seconds of a step by what they were spent on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s = clock()
        self._spent = dict.fromkeys(Spent, 0.0)

    @contextmanager
    def spent(self, on: Spent) -> Iterator[None]:
        """What passes inside counts as this."""
        begun_s = self._clock()
        try:
            yield
        finally:
            self._spent[on] += self._clock() - begun_s

    def take(self) -> Values:
        """The values of the step that ends now; the next one begins. A pause is not part of it."""
        now_s = self._clock()
        spent, self._spent = self._spent, dict.fromkeys(Spent, 0.0)
        step_s, self._since_s = now_s - self._since_s - spent[Spent.PAUSED], now_s
        return {"time/step_s": step_s} | {f"time/{on}_s": seconds for on, seconds in spent.items()}
