"""Starts the process of a zygote: with little environment, no stray descriptor, its own session."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from envpool.source import check_package

# What a zygote may see of our environment. The rest may hold secrets.
ALLOWED = frozenset({"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"})
ALLOWED_PREFIX = "LC_"
# Numeric libraries start threads at import, and a process with threads must not fork.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# The control socket's number in the zygote, right after the standard three.
CONTROL_FD = 3
# The interpreter ignores some of these, and ignored signals stay ignored across exec.
RESET_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD)


def spawn_zygote() -> tuple[int, socket.socket]:
    """Start one, idle; gives its pid and the control socket (non-blocking, SOCK_SEQPACKET).

    To be called on a thread that lives as long as the zygote shall: the kernel sends the parent-death
    signal when the thread ends that started it.
    """
    check_package()
    package = Path(__file__).parent
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # -P: the working directory may hold another `envpool`.
        arguments = [sys.executable, "-P", "-m", "envpool.zygote", str(os.getpid()), str(package)]
        pid = os.posix_spawn(
            sys.executable,
            arguments,
            _environment(package),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD),
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                # An environment's prints would garble the terminal.
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,  # Ctrl-C in the terminal is for the coordinator alone.
            setsigmask=[],  # Ray blocks SIGINT, and a mask survives exec.
            setsigdef=RESET_SIGNALS,
        )
    ours.setblocking(False)
    return pid, ours


async def reap(pid: int) -> None:
    """Wait until child process `pid` has ended, without a thread, and release its pid."""
    loop = asyncio.get_running_loop()
    exited = asyncio.Event()
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop.add_reader(fd, exited.set)
    try:
        await exited.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    _release(pid)


def _release(pid: int) -> None:
    """Take the status of a child that has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # Something else in this process waits for all its children.


def _environment(package: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ALLOWED or name.startswith(ALLOWED_PREFIX)
    }
    # What this process can import, the zygote can, and ours comes first.
    paths = [str(package.parent), *(path or str(Path.cwd()) for path in sys.path)]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONHASHSEED": "0",  # The order of sets of strings is part of determinism.
        **dict.fromkeys(ONE_THREAD, "1"),
    }
