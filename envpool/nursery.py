"""`Nursery`: the pool's side of one zygote process; it forks sessions and knows which are alive.

It lives on the event loop and starts no thread. Everything it learns comes as reports over the control
socket; the end of that socket means that the zygote, and with it every session, is gone.

A zygote has run the pool's code, so that its word counts for its own sessions alone. Who sends a report is
told by the kernel; a report that nobody may send ends the zygote.
"""

import asyncio
import logging
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from enum import StrEnum

import msgspec

from configs.load import ConfigError
from envpool.frames import (
    MAX_CONTROL_BYTES,
    Born,
    Exited,
    Fork,
    Kill,
    NotForked,
    Order,
    Outcome,
    Refused,
    Report,
    Serve,
    Serving,
    ShutIn,
    decode_report,
    pack_control,
)
from envpool.spawn import Offspring, Root, readable, wait_for

# How long a zygote may take to end its sessions and itself before it is killed.
CLOSE_GRACE_S = 5.0
# How long a fork may take: a zygote that forks no more is of no use, and who waits for it holds a slot.
FORK_GRACE_S = 60.0
# How a report fails to be one.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# From <sys/socket.h>: pid, uid and gid of who sent a message.
_CREDENTIALS = struct.Struct("3i")
# Room for these alone: descriptors that come along are dropped.
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


_log = logging.getLogger(__name__)


class Death(StrEnum):
    """Why a session process ended."""

    OWN = "own"
    """By what it did: it exited, or a signal that nobody else sends ended it."""
    KILLED = "killed"
    """By SIGKILL, which the kernel sends for lack of memory, and anybody else."""
    LOST = "lost"
    """With its zygote, or it was never forked."""


class Child:
    """One session process, from the order to fork it until it is reaped."""

    def __init__(
        self, child_id: int, nursery: "Nursery", when_gone: "Callable[[Child], None]"
    ) -> None:
        self.id = child_id
        self.pid = 0
        """0 until `forked`."""
        self.forked = asyncio.Event()
        self.deadline = asyncio.get_running_loop().call_later(FORK_GRACE_S, nursery.kill)
        self.outcome = Outcome.CRASHED
        """What its end means to a caller who did not ask for it."""
        self.ended = ""
        """How it ended, in words; empty while it lives."""
        self.death: Death | None = None
        self.gone = asyncio.Event()
        self.nursery = nursery
        self._when_gone = when_gone

    def kill(self) -> None:
        """Have it killed, whatever it does; `gone` is set when it is reaped."""
        if not self.gone.is_set():
            self.nursery.order(Kill(id=self.id))

    async def wait(self) -> None:
        """Wait until a killed session is gone; if its zygote does not see to it, kill the zygote."""
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self.gone.wait()
        except TimeoutError:
            self.nursery.kill()
            await self.gone.wait()

    def born(self, pid: int) -> None:
        """Record which process it is."""
        self.deadline.cancel()
        self.pid = pid
        self.forked.set()

    def end(self, death: Death, how: str) -> None:
        """Record that it is gone, or was never there."""
        self.deadline.cancel()
        self.death = death
        self.ended = how
        self.forked.set()
        self.gone.set()
        self._when_gone(self)


class Nursery:
    """A zygote that serves one pool source, and its sessions by id."""

    def __init__(
        self, process: Offspring, control: socket.socket, layers: list[str], serving: Serving
    ) -> None:
        self.version = serving.version
        """Content hash of the source it serves."""
        self.envs = serving.envs
        self.layers = layers
        """What isolates it."""
        self.pid = process.pid
        self._pidfd = process.pidfd
        self._control = control
        self._is_lost = False
        self._is_reaped = False
        self._children: dict[int, Child] = {}
        self._num_forks = 0
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control, self._on_readable)

    @classmethod
    async def start(cls, root: Root, serve: Serve, timeout_s: float) -> "Nursery":
        """Start a zygote and wait until it serves; raises ConfigError if it cannot.

        Raises ConnectionError when `root` is gone.
        """
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        async with AsyncExitStack() as undo:
            undo.callback(control.close)
            try:
                async with asyncio.timeout(timeout_s):
                    with theirs:
                        process = await root.fork(theirs, serve)
                    undo.push_async_callback(_end, process.pidfd)
                    within, serving = await _shake_hands(control, serve, process.pid)
            except TimeoutError as error:
                raise ConfigError(
                    f"pools.{serve.name}: importing {serve.section.source!r} and trying its environments "
                    f"took over {timeout_s} s: make it faster, or raise envpool.start_timeout_s"
                ) from error
            undo.pop_all()
        return cls(process, control, [*process.layers, *within], serving)

    @property
    def is_alive(self) -> bool:
        return not self._is_lost

    def fork(self, connection: socket.socket, when_gone: Callable[[Child], None]) -> Child:
        """Order a session that serves `connection`, which this takes over.

        `when_gone` is called once, when the session is reaped or turns out not to be.
        """
        self._num_forks += 1
        child = Child(self._num_forks, self, when_gone)
        self._children[child.id] = child
        self.order(Fork(id=child.id), connection)
        return child

    async def close(self) -> None:
        """End all sessions and the zygote."""
        self._lose("its pool was closed")
        if self._is_reaped:
            return
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await wait_for(self._pidfd)
        except TimeoutError:
            self.kill()
            await wait_for(self._pidfd)
        except asyncio.CancelledError:
            self.kill()
            raise
        self._is_reaped = True
        os.close(self._pidfd)

    def kill(self) -> None:
        """Kill the zygote, and so its sessions: for when it does not answer."""
        if not self._is_reaped:
            _kill(self._pidfd)

    def order(self, order: Order, connection: socket.socket | None = None) -> None:
        """Send an order, later if the socket is full. Without a zygote nothing is left to order."""
        if self._is_lost:
            if connection is not None:
                connection.close()
            if isinstance(order, Fork):
                self._end(order.id, Death.LOST, "was not forked: its zygote is gone")
            return
        self._unsent.append((pack_control(order), connection))
        self._flush()

    def _flush(self) -> None:
        self._loop.remove_writer(self._control)
        while self._unsent:
            message, connection = self._unsent[0]
            try:
                if connection is None:
                    self._control.send(message)
                else:
                    socket.send_fds(self._control, [message], [connection.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._control, self._flush)
                return
            except ConnectionError:
                return  # The reader learns of it too, and takes what is unsent away.
            self._unsent.popleft()
            if connection is not None:
                connection.close()

    def _on_readable(self) -> None:
        while not self._is_lost:
            try:
                data, ancillary, _, _ = self._control.recvmsg(MAX_CONTROL_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data, ancillary = b"", []
            if not data:
                self.kill()  # it may only have let go of the socket
                self._lose("its zygote died")
                return
            if not self._believe(data, _sender(ancillary)):
                _log.warning("zygote %d sent what it must not: killed", self.pid)
                self.kill()
                self._lose("its zygote was killed, as it sent what it must not")

    def _believe(self, data: bytes, sender: int) -> bool:
        """Act on a report; False for one that this sender may not send now."""
        try:
            report = decode_report(data)
        except UNREADABLE:
            return False
        if not isinstance(report, Born | NotForked | Exited) or report.id not in self._children:
            return False
        child = self._children[report.id]
        if isinstance(report, Born):
            # Once, and by a process of the pool that is not the zygote.
            if child.pid or sender in (0, self.pid):
                return False
            child.born(sender)
            return True
        if sender != self.pid:
            return False
        if isinstance(report, NotForked):
            child.outcome = report.outcome
            self._end(report.id, Death.LOST, f"was not forked: {report.error}")
        else:
            death = Death.KILLED if report.status == -signal.SIGKILL else Death.OWN
            self._end(report.id, death, _describe(report.status))
        return True

    def _lose(self, how: str) -> None:
        """Let go of the control socket, which ends the zygote; every session ends with it."""
        if self._is_lost:
            return
        self._is_lost = True
        self._loop.remove_reader(self._control)
        self._loop.remove_writer(self._control)
        self._control.close()
        for _, connection in self._unsent:
            if connection is not None:
                connection.close()
        self._unsent.clear()
        for child_id in list(self._children):
            self._end(child_id, Death.LOST, f"ended: {how}")

    def _end(self, child_id: int, death: Death, how: str) -> None:
        self._children.pop(child_id).end(death, how)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


async def _end(pidfd: int) -> None:
    """Kill a process, wait until it is gone, and let go of it."""
    try:
        _kill(pidfd)
        await wait_for(pidfd)
    finally:
        os.close(pidfd)


async def _shake_hands(control: socket.socket, serve: Serve, pid: int) -> tuple[list[str], Serving]:
    """Tell a new zygote what to import; raises ConfigError if it cannot. Returns also its layers."""
    layers: list[str] = []
    try:
        control.send(pack_control(serve))  # the first message: it fits
        report = await _first_report(control, pid)
        if serve.is_sandboxed and isinstance(report, ShutIn):
            layers = report.layers
            report = await _first_report(control, pid)
        elif serve.is_sandboxed and not isinstance(report, Refused):
            report = Refused(error="it was not shut in")
    # What is no report is also what is read when there will be none any more.
    except (ConnectionError, *UNREADABLE):
        report = Refused(error="its process died; see its last words")
    if isinstance(report, Serving):
        return layers, report
    reason = report.error if isinstance(report, Refused) else f"unexpected {report}"
    raise ConfigError(f"pool {serve.name} cannot be served: {reason}")


async def _first_report(control: socket.socket, pid: int) -> Report:
    """The next report of a zygote, and of no process that its imports forked."""
    await readable(control)
    data, ancillary, _, _ = control.recvmsg(MAX_CONTROL_BYTES, _ANCILLARY_BYTES)
    report = decode_report(data)
    if _sender(ancillary) != pid:
        return Refused(error="the pool's modules forked while they were imported")
    return report


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The process that sent a message, by its number here; 0 if the kernel does not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
    return 0


def _describe(status: int) -> str:
    """Exit status in words; a signal's status is negative."""
    if status >= 0:
        return f"exited with status {status}"
    hint = " (perhaps for lack of memory)" if -status == signal.SIGKILL else ""
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"  # those for real time have no names
    return f"was killed by {name}{hint}"
