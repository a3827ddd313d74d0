"""How a solution is turned down."""


class NotExtractableError(Exception):
    """A solution that cannot be compiled into an environment."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        """A few words that many solutions share."""
        self.detail = detail
