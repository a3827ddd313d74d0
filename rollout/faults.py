"""One vocabulary for what goes wrong in a rollout: `RolloutFault`, made by `boundary`."""

import traceback

from envpool.pool import EnvFault, Outcome
from rollout.engine import EngineError
from rollout.types import StopReason

_STOPS = {
    Outcome.TIMEOUT: StopReason.TIMEOUT,
    Outcome.GRADER_ERROR: StopReason.GRADER_ERROR,
}


class RolloutFault(Exception):
    """A rollout cannot go on; `args` are the stop reason, the error's text, how an environment failed."""

    @property
    def stop(self) -> StopReason:
        return self.args[0]

    @property
    def text(self) -> str:
        return self.args[1]

    @property
    def outcome(self) -> Outcome:
        return self.args[2] if len(self.args) > 2 else Outcome.OK


def boundary(stop: StopReason) -> "_Boundary":
    """Turn any exception inside into a `RolloutFault` for `stop`, or the one its type says."""
    return _Boundary(stop)


class _Boundary:
    """A class, as each turn of each rollout passes three of them, and a generator costs thrice as much."""

    __slots__ = ("_stop",)

    def __init__(self, stop: StopReason) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        if isinstance(error, EnvFault):
            stop = _STOPS.get(error.outcome, StopReason.ENV_ERROR)
            raise RolloutFault(stop, str(error), error.outcome) from error
        if isinstance(error, EngineError):
            raise RolloutFault(StopReason.ENGINE_ERROR, str(error)) from error
        # The rollout's own deadline passes through every boundary, as a cancellation does.
        if isinstance(error, Exception) and not isinstance(error, TimeoutError):
            text = "".join(traceback.format_exception(error, limit=-8))
            raise RolloutFault(self._stop, text) from error
