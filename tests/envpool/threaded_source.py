"""A source that starts a thread at import."""

import threading

from hostile_envs import pool

__all__ = ["pool"]

threading.Thread(target=threading.Event().wait, daemon=True).start()
