"""Processes that end with those that started them, from their first moment on, and say all in one file.

    front end --- Leash among what its engine is made with ---> engine's process ---> its workers

What a process runs at its very end does not run when it is killed. So whoever gets a `Leash` watches:
one that is spawned while it reads what it is started with, one that is forked before it does anything.
"""

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Sequence
from multiprocessing import util
from typing import Any

_watching_pid = 0
"""The process that watches already: it, and none that was forked from it."""


class Leash(str):
    """A process made with it ends with the owner, which made the leash, and with its own parent.

    What it says is appended to the file `log`, if one is given.

    It is text, and the same one every time: caches of compiled models are found by a fingerprint of all
    settings.
    """

    __slots__ = ("__weakref__", "_log", "_owner")

    def __new__(cls, owner: int | None = None, *, log: str = "") -> "Leash":
        leash = super().__new__(cls, "leash")
        leash._owner = owner or os.getpid()
        leash._log = log
        util.register_after_fork(leash, Leash._hold_forked)
        return leash

    def __reduce__(self) -> Any:
        # Only spawned processes read it with another number than their own.
        return _received, (self._owner, os.getpid(), self._log)

    def __deepcopy__(self, memo: Any) -> "Leash":
        return self

    def _hold_forked(self) -> None:
        parent = multiprocessing.parent_process()
        above = parent.pid if parent is not None and parent.pid else os.getppid()
        _watch([self._owner, above], self._log)


def _received(owner: int, parent: int, log: str) -> Leash:
    if os.getpid() not in (owner, parent):
        _watch([owner, parent], log)
    return Leash(owner, log=log)


def _watch(pids: Sequence[int], log: str) -> None:
    """End this process when one of these ends, however it does; what it says goes to `log`."""
    global _watching_pid
    if _watching_pid == os.getpid():
        return
    _watching_pid = os.getpid()
    if log:
        with open(log, "ab") as file:
            for stream in (1, 2):  # whatever else it puts into sys.stdout and sys.stderr
                os.dup2(file.fileno(), stream)
    threading.Thread(target=_end_with, args=(set(pids),), daemon=True, name="leash").start()


def _end_with(pids: set[int]) -> None:
    poll = select.poll()
    try:
        for pid in pids:
            poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.poll()
    except ProcessLookupError:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
