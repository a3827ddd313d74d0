"""Says faults aloud, each kind a few times: a broken environment has thousands of the same."""

import logging
import re
from collections import Counter

from rollout.types import Rollout

logger = logging.getLogger(__name__)

# Times that a kind of fault is said in full, and counts at which it is said that it goes on.
IN_FULL = 3
MILESTONES = (10, 100)
EVERY = 500
# Kinds that are told apart; beyond it counting begins anew, so that it never grows without end.
MAX_KINDS = 1000

_NUMBER = re.compile(r"\d+")


def last_line(error: str) -> str:
    """Type and message of a fault, which a traceback ends with."""
    return error.strip().rsplit("\n", 1)[-1]


class Faults:
    """Counts the faults of a run by kind: environment, stop reason and message but for its numbers."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def say(self, rollout: Rollout) -> None:
        """Log a rollout that faulted, unless the same was said often enough."""
        line = last_line(rollout.error)
        env = f"{rollout.pool}/{rollout.env}"
        kind = (env, str(rollout.stop), _NUMBER.sub("0", line))
        if kind not in self._counts and len(self._counts) >= MAX_KINDS:
            self._counts.clear()
        self._counts[kind] += 1
        count = self._counts[kind]
        if count <= IN_FULL:
            logger.warning(
                "rollout %s/%d of %s: %s: %s%s",
                rollout.group_id,
                rollout.member,
                rollout.task_id,
                rollout.stop,
                line,
                " (from now on only counted)" if count == IN_FULL else "",
            )
        elif count in MILESTONES or count % EVERY == 0:
            logger.warning("%s: the same fault %d times: %s: %s", env, count, rollout.stop, line)
