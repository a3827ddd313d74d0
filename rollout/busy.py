"""When an engine computed, as it is known from outside: it had requests and was not held."""

import time
from collections import deque

# Intervals kept until somebody takes them.
_MAX_INTERVALS = 100_000


class BusyClock:
    """Keeps the intervals (start, end) of `time.monotonic()` in which it was told `is_busy`."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[float, float]] = deque(maxlen=_MAX_INTERVALS)
        self._since: float | None = None
        self.total_s = 0.0
        """Of the intervals that ended."""

    def note(self, is_busy: bool) -> None:
        """From now on the engine computes, or does not."""
        if not is_busy:
            self._end()
        elif self._since is None:
            self._since = time.monotonic()

    def take(self) -> list[tuple[float, float]]:
        """The intervals since the last call; one that goes on is cut here."""
        is_busy = self._since is not None
        self._end()
        self.note(is_busy)
        taken = list(self._intervals)
        self._intervals.clear()
        return taken

    def _end(self) -> None:
        if self._since is None:
            return
        now = time.monotonic()
        self._intervals.append((self._since, now))
        self.total_s += now - self._since
        self._since = None
