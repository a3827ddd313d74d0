"""How long the parts of a start took, one after the other."""

import time


class Laps:
    """Seconds by part, from one lap to the next."""

    def __init__(self, *, earlier_s: float = 0.0) -> None:
        """With `earlier_s`, the first part began that much before."""
        self._last = time.monotonic() - earlier_s
        self.seconds: dict[str, float] = {}

    def end(self, part: str) -> None:
        """`part` ends now."""
        now = time.monotonic()
        self.seconds[part] = round(now - self._last, 3)
        self._last = now
