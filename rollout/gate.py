"""`Gate`: whether a run goes on, or is paused between two steps until somebody says so."""

from collections.abc import Callable


class Gate:
    """Open unless somebody paused. Closed, nothing new begins; what was begun ends as it would have."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.is_paused = False

    def pause(self) -> None:
        """Begin nothing new. Safe to call again."""
        self._set(is_paused=True)

    def resume(self) -> None:
        """Go on. Safe to call again."""
        self._set(is_paused=False)

    def _set(self, *, is_paused: bool) -> None:
        if is_paused is not self.is_paused:
            self.is_paused = is_paused
            self._on_change()
