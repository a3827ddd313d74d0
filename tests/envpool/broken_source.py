"""A source that raises at import."""

pool = 1 / 0
