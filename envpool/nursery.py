"""`Nursery`: the pool's side of one zygote process; it forks sessions and knows which are alive.

It lives on the event loop and starts no thread. Everything it learns comes as reports over the control
socket; the end of that socket means that the zygote, and with it every session, is gone.
"""

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from enum import StrEnum

from configs.load import ConfigError
from envpool.frames import (
    MAX_CONTROL_BYTES,
    Exited,
    Fork,
    Forked,
    Kill,
    NotForked,
    Order,
    Outcome,
    Refused,
    Serve,
    Serving,
    decode_report,
    pack_control,
)
from envpool.spawn import Offspring, Root, wait_for

# How long a zygote may take to end its sessions and itself before it is killed.
CLOSE_GRACE_S = 5.0


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

    def end(self, death: Death, how: str) -> None:
        """Record that it is gone, or was never there."""
        self.death = death
        self.ended = how
        self.forked.set()
        self.gone.set()
        self._when_gone(self)


class Nursery:
    """A zygote that serves one pool source, and its sessions by id."""

    def __init__(self, process: Offspring, control: socket.socket, serving: Serving) -> None:
        self.version = serving.version
        """Content hash of the source it serves."""
        self.envs = serving.envs
        self.layers = serving.layers
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
        async with AsyncExitStack() as undo:
            undo.callback(control.close)
            try:
                async with asyncio.timeout(timeout_s):
                    with theirs:
                        process = await root.fork(theirs)
                    undo.push_async_callback(_end, process.pidfd)
                    serving = await _shake_hands(control, serve)
            except TimeoutError as error:
                raise ConfigError(
                    f"pools.{serve.name}: importing {serve.section.source!r} and trying its environments "
                    f"took over {timeout_s} s: make it faster, or raise envpool.start_timeout_s"
                ) from error
            undo.pop_all()
        return cls(process, control, serving)

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
                data = self._control.recv(MAX_CONTROL_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                self._lose("its zygote died")
                return
            report = decode_report(data)
            if isinstance(report, Forked):
                self._children[report.id].pid = report.pid
                self._children[report.id].forked.set()
            elif isinstance(report, NotForked):
                self._children[report.id].outcome = report.outcome
                self._end(report.id, Death.LOST, f"was not forked: {report.error}")
            elif isinstance(report, Exited):
                death = Death.KILLED if report.status == -signal.SIGKILL else Death.OWN
                self._end(report.id, death, _describe(report.status))

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


async def _shake_hands(control: socket.socket, serve: Serve) -> Serving:
    """Tell a new zygote what to import; raises ConfigError if it cannot."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(control, pack_control(serve))
        data = await loop.sock_recv(control, MAX_CONTROL_BYTES)
    except ConnectionError:
        data = b""
    report = decode_report(data) if data else Refused(error="its process died; see its last words")
    if isinstance(report, Serving):
        return report
    reason = report.error if isinstance(report, Refused) else f"unexpected {report}"
    raise ConfigError(f"pool {serve.name} cannot be served: {reason}")


def _describe(status: int) -> str:
    """Exit status in words; a signal's status is negative."""
    if status >= 0:
        return f"exited with status {status}"
    hint = " (perhaps for lack of memory)" if -status == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name}{hint}"
