"""`Root`: the process that zygotes are forked from; it starts with little environment and no stray socket.

EnvPool -- ForkZygote + a control socket --> root -- fork --> zygote (one per version of a pool)
        <-- pid + pidfd --------------------
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from envpool.frames import (
    MAX_CONTROL_BYTES,
    Forked,
    ForkZygote,
    NotForked,
    Serve,
    decode_report,
    pack_control,
)
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
# How long a root may take to end its zygotes and itself before it is killed.
CLOSE_GRACE_S = 5.0


class Offspring(NamedTuple):
    """A zygote just forked."""

    pid: int
    pidfd: int
    """Names the process also after it ended; whoever has it closes it."""
    layers: list[str]
    """What isolates it, seen from outside."""


class Root:
    """A process that forks zygotes. Close it."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self._control = control
        self._asking = asyncio.Lock()
        self._num_forks = 0
        self._is_lost = False

    @classmethod
    def spawn(cls) -> "Root":
        """Start one, which answers once it has imported what zygotes need.

        To be called on a thread that lives as long as it shall: the kernel sends the parent-death
        signal when the thread ends that started it.
        """
        check_package()
        package = Path(__file__).parent
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # -P: the working directory may hold another `envpool`.
            arguments = [sys.executable, "-P", "-m", "envpool.root", str(os.getpid()), str(package)]
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
        return cls(pid, ours)

    @property
    def is_alive(self) -> bool:
        return not self._is_lost

    async def fork(self, connection: socket.socket, serve: Serve) -> Offspring:
        """Fork a zygote whose control socket `connection` is. Raises ConnectionError, OSError."""
        async with self._asking:
            if self._is_lost:
                raise ConnectionResetError("the process that zygotes are forked from ended")
            self._num_forks += 1
            number = self._num_forks
            order = pack_control(
                ForkZygote(
                    id=number,
                    is_sandboxed=serve.is_sandboxed,
                    memory_bytes=serve.pool_memory_bytes,
                    max_processes=serve.max_processes,
                )
            )
            try:
                # The root reads one order at a time, and nothing else is on its way: it fits.
                socket.send_fds(self._control, [order], [connection.fileno()])
                while True:
                    report, fds = await self._report()
                    if report.id == number:
                        break
                    _close_all(fds)  # of a call that was cancelled
            except ConnectionError:
                self._is_lost = True
                raise
        if not isinstance(report, Forked):
            raise OSError(f"no zygote could be forked: {report.error}")
        return Offspring(report.pid, fds[0], report.layers)

    async def close(self) -> None:
        """End it, and so every zygote of it. Safe to call again."""
        self._is_lost = True
        if self._control.fileno() < 0:
            return
        self._control.close()  # which ends it, once it has put away what its zygotes leave
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await reap(self.pid)
        except TimeoutError:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                return  # something else in this process reaped it
            await reap(self.pid)

    async def _report(self) -> tuple[Forked | NotForked, list[int]]:
        """The root's next report, and the descriptors beside it."""
        await readable(self._control)
        data, fds, _, _ = socket.recv_fds(self._control, MAX_CONTROL_BYTES, 1)
        if not data:
            raise ConnectionResetError("the process that zygotes are forked from ended")
        report = decode_report(data)
        assert isinstance(report, Forked | NotForked), f"unexpected {report}"
        return report, fds


async def wait_for(pidfd: int) -> None:
    """Wait until the process behind `pidfd` has ended, without a thread."""
    await readable(pidfd)


async def readable(file: socket.socket | int) -> None:
    """Wait until there is something to be read."""
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(file, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(file)


async def reap(pid: int) -> None:
    """Wait until child process `pid` has ended, and release its pid."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await wait_for(fd)
    finally:
        os.close(fd)
    _release(pid)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


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
