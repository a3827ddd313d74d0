"""The sockets between a pool and its sessions, and the room for them."""

import asyncio
import resource
import socket
from collections.abc import Callable

from envpool.frames import Outcome
from envpool.nursery import Child, Nursery
from envpool.session import EnvFault, Wire, Worker


def socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        message = f"no socket for a session: {error}; raise the limit on open files (ulimit -n)"
        raise EnvFault(Outcome.ENV_ERROR, message) from error
    ours.setblocking(False)
    return ours, theirs


def order_fork(nursery: Nursery, when_gone: Callable[[Child], None]) -> tuple[Child, socket.socket]:
    """A process that is being forked, and our end of its socket. Raises EnvFault."""
    ours, theirs = socketpair()
    return nursery.fork(theirs, when_gone), ours


async def fork_shared(nursery: Nursery) -> Worker:
    """A new process for several sessions, each of which holds a slot of its own."""
    return await connect(*order_fork(nursery, lambda _: None))


async def connect(child: Child, connection: socket.socket) -> Worker:
    """The wire to a process that is being forked."""
    wire = Wire()
    worker = Worker(child, wire)
    try:
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: wire, sock=connection)
    except BaseException:
        worker.let_go()
        raise
    return worker


def allow_descriptors(wanted: int) -> None:
    """Raise the soft limit on open files: a session takes one, and 1,024 is a common limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        # The hard limit is never infinite on Linux (fs.nr_open bounds it).
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
