"""One vocabulary for what goes wrong in a rollout: `RolloutFault`, made by `boundary`."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def boundary(stop: StopReason) -> Iterator[None]:
    """Turn any exception inside into a `RolloutFault` for `stop`, or the one its type says."""
    try:
        yield
    except EnvFault as error:
        stop = _STOPS.get(error.outcome, StopReason.ENV_ERROR)
        raise RolloutFault(stop, str(error), error.outcome) from error
    except EngineError as error:
        raise RolloutFault(StopReason.ENGINE_ERROR, str(error)) from error
    except TimeoutError:
        raise  # the rollout's own deadline: it passes through every boundary
    except Exception as error:
        raise RolloutFault(stop, traceback.format_exc(limit=-8)) from error
