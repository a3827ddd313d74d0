"""`python -m envpool.root PARENT_PID PACKAGE`: a warm process that forks zygotes.

It has imported what every zygote needs and nothing of any pool, so that a pool that is plugged in takes
the time of a fork and of its own imports. It holds no secret, has one thread, and ends with its parent
or with its control socket, whichever is first; the zygotes end with it. What isolates a zygote and needs
somebody outside is its work: the zygote's control group, and ending what it left running.
"""

import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

import envpool
from envpool import cgroups, namespaces, sandbox, zygote
from envpool.cgroups import Group
from envpool.frames import (
    MAX_CONTROL_BYTES,
    Forked,
    ForkZygote,
    NotForked,
    Outcome,
    decode_order,
    pack_control,
)
from envpool.sandbox import Layer
from envpool.spawn import CONTROL_FD

# A process id on its way through a pipe.
_PID_BYTES = 8


def main(arguments: list[str]) -> int:
    """Fork a zygote for each order until the control socket closes."""
    parent, package = arguments
    zygote.die_with(int(parent))
    # Whatever else was inherited: libraries of the parent do not always close on exec.
    os.closerange(CONTROL_FD + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    # A session that crashes leaves no core file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the zygotes
    found = Path(envpool.__file__ or "").parent
    if found != Path(package):
        sys.stderr.write(f"`envpool` is {found}, not {package}: uninstall the other package\n")
        return 1
    with socket.socket(fileno=CONTROL_FD) as control:
        root = Root(control)
        sandbox.prepare()
        # Objects made so far are shared with every process to come: no collector may touch their pages.
        gc.collect()
        gc.freeze()
        root.run()
    return 0


class Zygote(NamedTuple):
    """What is known of one that lives, outside of it."""

    pid: int
    pidfd: int
    group: Group | None
    may_leave: bool
    """Whether processes may outlive it that nobody trusts."""


class Root:
    """The loop between the control socket and the ends of zygotes."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        # By which a zygote learns that this process is gone, whatever its number is there.
        self._own_pidfd = os.pidfd_open(os.getpid())
        self._zygotes: dict[int, Zygote] = {}
        self._places = cgroups.find()
        cgroups.sweep(self._places)
        self._poll = select.poll()  # not epoll: it has no descriptor that a zygote would inherit

    def run(self) -> None:
        """Obey orders until the control socket ends, then end all zygotes."""
        self._poll.register(self._control, select.POLLIN)
        is_open = True
        while is_open:
            for fd, _ in self._poll.poll():
                if fd in self._zygotes:
                    self._bury(fd)
                else:
                    is_open = self._obey()
        for alive in self._zygotes.values():
            signal.pidfd_send_signal(alive.pidfd, signal.SIGKILL)
        self._poll.unregister(self._control)
        while self._zygotes:
            for fd, _ in self._poll.poll():
                self._bury(fd)

    def _obey(self) -> bool:
        """Carry out one order; False at the end of the control socket."""
        data, fds, _, _ = socket.recv_fds(self._control, MAX_CONTROL_BYTES, 1)
        if not data:
            return False
        order = decode_order(data)
        assert isinstance(order, ForkZygote), f"an order to the root is {order}"
        with socket.socket(fileno=fds[0]) as connection:
            try:
                self._fork(order, connection)
            except OSError as error:
                report = NotForked(id=order.id, outcome=Outcome.CRASHED, error=str(error))
                self._control.sendall(pack_control(report))
        return True

    def _fork(self, order: ForkZygote, connection: socket.socket) -> None:
        """Fork a zygote and tell its process. Raises OSError where there is none."""
        told, tell = os.pipe()
        with open(told, "rb", 0) as reader, open(tell, "wb", 0) as writer:
            pid, has_own_pids = namespaces.fork(own_pids=order.is_sandboxed)
            if pid == 0:
                writer.close()
                self._become_zygote(connection, reader.fileno())
            pidfd = os.pidfd_open(pid)  # OSError: it has ended already
            group = self._group(order, pid) if order.is_sandboxed else None
            may_leave = order.is_sandboxed and not has_own_pids
            self._zygotes[pidfd] = Zygote(pid, pidfd, group, may_leave)
            self._poll.register(pidfd, select.POLLIN)
            layers: list[str] = [Layer.PROCESSES] if has_own_pids else []
            if group is not None:
                layers.append(Layer.CGROUP)
            report = Forked(id=order.id, pid=pid, layers=layers)
            socket.send_fds(self._control, [pack_control(report)], [pidfd])
            # Only now, with all around it in place, does it go on.
            try:
                writer.write(pid.to_bytes(_PID_BYTES, "big"))
            except BrokenPipeError:
                pass  # it has ended

    def _group(self, order: ForkZygote, pid: int) -> Group | None:
        """The control group of a zygote, with it inside; None where there is none."""
        tasks = sandbox.max_tasks(order.max_processes)
        group = Group.make(self._places, order.id, memory_bytes=order.memory_bytes, max_tasks=tasks)
        if group is not None and not group.add(pid):
            group.end()
            return None
        return group

    def _become_zygote(self, connection: socket.socket, told: int) -> NoReturn:
        """In the child: serve one pool, and never return."""
        status = 1
        try:
            zygote.die_with_root(self._own_pidfd)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            self._control.close()
            for fd in self._zygotes:
                os.close(fd)
            number = os.read(told, _PID_BYTES)
            if number:
                os.close(told)
                pid = int.from_bytes(number, "big")
                status = zygote.main(connection, self._own_pidfd, pid)
        # A process entry point: nothing may unwind into the root's loop.
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _bury(self, pidfd: int) -> None:
        """Put away what a zygote leaves that has ended."""
        gone = self._zygotes.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        if gone.may_leave:
            sandbox.end_user(gone.pid)
        if gone.group is not None:
            gone.group.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
