"""`python -m envpool.root PARENT_PID PACKAGE`: a warm process that forks zygotes.

It has imported what every zygote needs and nothing of any pool, so that a pool that is plugged in takes
the time of a fork and of its own imports. It holds no secret, has one thread, and ends with its parent
or with its control socket, whichever is first; the zygotes end with it.
"""

import gc
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import envpool
from envpool import zygote
from envpool.frames import (
    MAX_CONTROL_BYTES,
    Fork,
    Forked,
    NotForked,
    Outcome,
    decode_order,
    pack_control,
)
from envpool.spawn import CONTROL_FD


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
    # Objects made so far are shared with every process to come: no collector may touch their pages.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=CONTROL_FD) as control:
        while True:
            data, fds, _, _ = socket.recv_fds(control, MAX_CONTROL_BYTES, 1)
            if not data:
                return 0
            order = decode_order(data)
            assert isinstance(order, Fork), f"an order to the root is {order}"
            with socket.socket(fileno=fds[0]) as connection:
                _fork(control, order.id, connection)


def _fork(control: socket.socket, zygote_id: int, connection: socket.socket) -> None:
    root = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        _refuse(control, zygote_id, error)
        return
    if pid == 0:
        control.close()
        _become_zygote(connection, root)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:  # it has ended already
        _refuse(control, zygote_id, error)
        return
    try:
        socket.send_fds(control, [pack_control(Forked(id=zygote_id, pid=pid))], [pidfd])
    finally:
        os.close(pidfd)


def _refuse(control: socket.socket, zygote_id: int, error: OSError) -> None:
    report = NotForked(id=zygote_id, outcome=Outcome.CRASHED, error=str(error))
    control.sendall(pack_control(report))


def _become_zygote(connection: socket.socket, root: int) -> NoReturn:
    """In the child: serve one pool, and never return."""
    status = 1
    try:
        zygote.die_with(root)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setpgid(0, 0)
        status = zygote.main(connection, root)
    # A process entry point: nothing may unwind into the root's loop.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
