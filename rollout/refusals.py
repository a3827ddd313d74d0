"""How an operation on a running run is refused: the run is what it was, and the words are for the caller."""


class Refused(Exception):
    """It cannot be done as things stand; the message says why, and what to do."""


class NotThere(Refused):
    """What it is about does not exist."""
