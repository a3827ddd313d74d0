"""Namespaces: what of this machine a process can name. Used where the system allows them.

A zygote of a pool that nobody trusts is process 1 of a namespace of process ids, made by the system call
that forks it, so that no third process stands between it and the root. When it ends, for whatever reason,
the kernel ends all that descends from it; nothing in it can name a process outside. It keeps the mounts of
everybody: it may write to none, and may not read `/proc`, so that mounts of its own would add nothing.
"""

import ctypes
import os
import platform
import signal
from pathlib import Path

_NEWUSER, _NEWPID = 0x10000000, 0x20000000
_NEWNET, _NEWIPC, _NEWUTS = 0x40000000, 0x08000000, 0x04000000
# The number of `clone`, by architecture.
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}.get(platform.machine())

_libc = ctypes.CDLL(None, use_errno=True)
# Calls through this one keep the interpreter's lock, which a child needs to hold, too.
_holding = ctypes.PyDLL(None)


def fork(*, own_pids: bool) -> tuple[int, bool]:
    """`os.fork()`; with `own_pids` the child is process 1 of a namespace if the system allows it.

    A user without privileges gets a user namespace with it, which it needs for that. Returns also whether
    there is such a namespace.
    """
    if not own_pids or _CLONE is None:
        return os.fork(), False
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWPID | signal.SIGCHLD | (_NEWUSER if uid != 0 else 0)
    # What os.fork() does, by another system call; what libc would do besides is about threads.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _holding.syscall(*(ctypes.c_long(word) for word in (_CLONE, flags, 0, 0, 0, 0)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        if uid != 0:
            _map_ids(uid, gid)
        return 0, True
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    return (pid, True) if pid > 0 else (os.fork(), False)


def has_own_pids() -> bool:
    """Whether this process is the first of a namespace of process ids."""
    return os.getpid() == 1


def leave() -> bool:
    """Into namespaces without network devices; False where the system does not allow it."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWNET | _NEWIPC | _NEWUTS
    is_plain = uid != 0 and not has_own_pids()  # without a user namespace yet
    if _libc.unshare(flags | (_NEWUSER if is_plain else 0)) != 0:
        return False
    if is_plain:
        _map_ids(uid, gid)
    return True


def _map_ids(uid: int, gid: int) -> None:
    """Keep the ids in a new user namespace, where they would be those of nobody, who owns nothing."""
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(line)
        except OSError:
            return  # it changes little
