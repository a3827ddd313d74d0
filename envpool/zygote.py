"""The process that serves one version of a pool: forks session processes, warm and fast.

Itself forked from the root (`envpool/root.py`), it imports the modules of one pool once; a fork of it is
ready in milliseconds. It holds no secret and no socket but its control socket, has one thread, and ends
with the root: by the parent-death signal, or by the end of the control socket, whichever comes first.
Its sessions end with it.
"""

import ctypes
import errno
import gc
import importlib
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NoReturn

from configs.load import ConfigError
from envpool import sandbox
from envpool.frames import (
    MAX_CONTROL_BYTES,
    Born,
    Exited,
    Fork,
    Kill,
    NotForked,
    Outcome,
    Refused,
    Report,
    Serve,
    Serving,
    ShutIn,
    Start,
    Step,
    decode_order,
    pack_control,
)
from envpool.sandbox import Layer, SandboxError, SessionLimits
from envpool.source import PoolSource, module_of
from envpool.worker import Session, serve

# From <sys/prctl.h>: the signal this process gets when its parent ends.
PR_SET_PDEATHSIG = 1
# Orphans below this process become its children.
PR_SET_CHILD_SUBREAPER = 36
# How long a process of an import, which nobody waited for, may take to end.
CHILD_GRACE_S = 0.5
# How much more of a victim a session is than its zygote, of 1,000.
VICTIM = b"300"
# Characters of a traceback that fit a control message, at up to four bytes each.
MAX_ERROR_CHARS = 8000

_libc = ctypes.CDLL(None, use_errno=True)


def main(control: socket.socket, root_pidfd: int, pid: int) -> int:
    """Serve forks until the control socket closes; returns the exit status.

    `pid`: of this process as it is known outside; `root_pidfd`: of the root, which this closes.
    """
    first = control.recv(MAX_CONTROL_BYTES)
    if not first:
        return 0
    order = decode_order(first)
    assert isinstance(order, Serve), f"the first order is {order}"
    limits = None
    if order.is_sandboxed:
        limits = SessionLimits(order.memory_bytes, order.cpu_s, order.max_processes)
    tasks = os.open("/proc/self/task", os.O_RDONLY)  # readable for as long as it is open
    oom = _open_oom()
    # Directories may have changed since the root looked at them.
    importlib.invalidate_caches()
    try:
        if limits is not None:
            layers = _shut_in(order, limits, pid)
            # A process that changes its user is no longer told of its parent's end.
            die_with_root(root_pidfd)
            control.sendall(pack_control(ShutIn(layers=list(layers))))
        os.close(root_pidfd)
        source = PoolSource.load(order.name, order.section, folder=order.folder)
        check_single_threaded(tasks)
        warm(source)
        if limits is not None:
            check_childless()
    # A process entry point: whatever the pool's modules raise is reported to who asked for them.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        is_told = isinstance(error, ConfigError | SandboxError)
        text = str(error) if is_told else traceback.format_exc()
        control.sendall(pack_control(Refused(error=text[-MAX_ERROR_CHARS:])))
        return 1
    _forget_signals()
    serving = Serving(version=source.version, envs=list(source.envs))
    Zygote(control, tasks, source, limits, oom).run(serving)
    return 0


def _shut_in(order: Serve, limits: SessionLimits, pid: int) -> list[Layer]:
    """Enter the sandbox, from which the code of this pool is read and no other."""
    if order.folder:
        code = [Path(order.folder)]
    else:
        module = module_of(order.name, order.section.source)
        code = sandbox.code_of(module.partition(":")[0])
    # What the import leaves behind becomes a child of this process, in a namespace of its own or not.
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    return sandbox.enter(code, limits, pid=pid)


def warm(source: PoolSource) -> None:
    """Start an episode of each environment and make a call, so that no session does it first.

    Schemas and caches made here are shared by all forks: measured, a quarter of a session's CPU time.
    Runs once, at start; what an environment raises is its sessions' to report.
    """
    for name in source.envs:
        try:
            config = source.sample(name, Random(0), 0)
        except Exception:  # noqa: BLE001, S112 - it gives none at this level
            continue
        session = Session(source.envs, source.tasks)
        session.answer(Start(id=0, env=name, config=config, seed=0))
        session.answer(Step(id=1, action="{}"))
        session.close()


class Zygote:
    """The loop between the control socket and the session processes."""

    def __init__(
        self,
        control: socket.socket,
        tasks: int,
        source: PoolSource,
        limits: SessionLimits | None,
        oom: int,
    ) -> None:
        """`tasks`: a descriptor of this process's directory of threads; `limits`: of a sandbox.

        `oom`: a descriptor of what makes this process a victim when memory runs out, or -1.
        """
        self._control = control
        self._tasks = tasks
        self._source = source
        self._limits = limits
        self._oom = oom
        self._pids: dict[int, int] = {}
        self._ids: dict[int, int] = {}
        self._wake, self._wake_writer = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector = selectors.DefaultSelector()

    def run(self, serving: Serving) -> None:
        """Obey orders until the control socket ends, then end all sessions."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        # Objects made so far are shared with the sessions: the collector must not touch their pages.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._report(serving)
        is_open = True
        while is_open:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    self._wake.recv(4096)
                    self._reap()
                else:
                    is_open = self._obey()
        for pid in self._ids:
            _kill_group(pid)
        while self._ids:
            self._forget(os.waitpid(-1, 0)[0])

    def _obey(self) -> bool:
        """Carry out one order; False at the end of the control socket."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MAX_CONTROL_BYTES, 1)
        except ConnectionError:  # the other side closed it with a report unread
            data, fds = b"", []
        if not data:
            return False
        order = decode_order(data)
        if isinstance(order, Fork):
            with socket.socket(fileno=fds[0]) as connection:
                self._fork(order.id, connection)
        elif isinstance(order, Kill) and order.id in self._pids:
            _kill_group(self._pids[order.id])
        return True

    def _fork(self, session_id: int, connection: socket.socket) -> None:
        try:
            check_single_threaded(self._tasks)
            zygote_pid = os.getpid()
            with self._as_victim():
                pid = os.fork()
        except (OSError, ConfigError) as error:
            no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
            outcome = Outcome.OOM if no_memory else Outcome.CRASHED
            self._report(NotForked(id=session_id, outcome=outcome, error=str(error)))
            return
        if pid == 0:
            self._become_session(connection, zygote_pid, session_id)
        # Set on both sides: whoever is first, the group exists before it is needed.
        _set_group(pid)
        self._pids[session_id] = pid
        self._ids[pid] = session_id

    def _become_session(
        self, connection: socket.socket, zygote_pid: int, session_id: int
    ) -> NoReturn:
        """In the child: let go of all that is the zygote's, serve, and never return."""
        status = 1
        try:
            os.setpgid(0, 0)
            die_with(zygote_pid)
            self._control.sendall(pack_control(Born(id=session_id)))
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for held in (self._control, self._wake, self._wake_writer):
                held.close()
            os.close(self._tasks)
            if self._oom >= 0:
                os.close(self._oom)
            if self._limits is not None:
                os.dup2(1, 2)  # nowhere: what it prints would flood the log
                sandbox.enter_session(self._limits)
            gc.enable()
            serve(connection, self._source.envs, self._source.tasks)
            status = 0
        except ConnectionError:
            status = 0  # The pool closed the session while it answered.
        # A process entry point: nothing may unwind into the zygote's loop.
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    @contextmanager
    def _as_victim(self) -> Iterator[None]:
        """What is forked here is killed first when memory runs out, as without the zygote all is lost."""
        if self._oom >= 0:
            os.write(self._oom, VICTIM)
        yield
        if self._oom >= 0:
            os.write(self._oom, b"0")

    def _reap(self) -> None:
        """Reap the sessions that ended, and what they left running."""
        while self._ids:
            # Looked at before it is reaped: while it is a zombie its group's id is still its own.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            _kill_group(ended.si_pid)
            _, status = os.waitpid(ended.si_pid, 0)
            session_id = self._forget(ended.si_pid)
            if session_id is not None:
                self._report(Exited(id=session_id, status=os.waitstatus_to_exitcode(status)))

    def _forget(self, pid: int) -> int | None:
        session_id = self._ids.pop(pid, None)
        if session_id is not None:
            del self._pids[session_id]
        return session_id

    def _report(self, report: Report) -> None:
        try:
            self._control.sendall(pack_control(report))
        except ConnectionError:
            pass  # The parent is gone; the next read of the control socket says so too.


def _open_oom() -> int:
    """This process's place among the victims, open for later: nothing in /proc can be opened then."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)
    except OSError:
        return -1
    if os.read(fd, 16).strip() != b"0":  # somebody cared for it, who may not want it moved
        os.close(fd)
        return -1
    return fd


def check_single_threaded(tasks: int) -> None:
    """Raise ConfigError if a fork would copy a process with threads, whose locks may be held.

    `tasks`: a descriptor of this process's directory of threads.
    """
    num_threads = len(os.listdir(tasks))
    if num_threads > 1:
        raise ConfigError(
            f"the pool's modules started {num_threads - 1} threads while they were imported: "
            "start threads when an environment is reset, not at import"
        )


def die_with(parent: int) -> None:
    """Have the kernel kill this process when process `parent` ends."""
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # It ended before the call above.
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_root(pidfd: int) -> None:
    """The same for a zygote: as the first process of a namespace it has no parent it can name."""
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if select.select([pidfd], [], [], 0)[0]:
        os._exit(1)  # by a signal of its own such a process cannot end


def check_childless() -> None:
    """Raise ConfigError if the pool's modules left processes running."""
    deadline = time.monotonic() + CHILD_GRACE_S
    while True:
        try:
            ended = os.waitpid(-1, os.WNOHANG)[0]
        except ChildProcessError:
            return
        if not ended and time.monotonic() > deadline:
            sandbox.end_others()
            raise ConfigError(
                "the pool's modules started processes while they were imported, which still run: "
                "wait for them, or start none"
            )
        if not ended:
            time.sleep(0.01)


def _forget_signals() -> None:
    """Undo what the pool's modules did to timers and blocked signals: they would disturb the loop."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _set_group(pid: int) -> None:
    try:
        os.setpgid(pid, pid)
    except (ProcessLookupError, PermissionError):
        pass  # The session did it itself, and may have ended already.


def _kill_group(pid: int) -> None:
    """Kill an unreaped session and the processes it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
