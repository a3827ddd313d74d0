"""The bound: as many processes, each of which sends back what it gets over a socketpair.

No environment, no message, no deadline, no record: a frame of the size of a step goes there and back.
The client is the fastest that asyncio offers, on the event loop that the sessions' client has.
"""

import asyncio
import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

from envpool.bench.system import ACTION, call_each, runner, step_concurrently
from envpool.frames import Step, pack

FRAME = pack(Step(id=1, action=ACTION))


class Echo(asyncio.Protocol):
    """One frame at a time, there and back."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._num_unread = 0

    async def round_trip(self) -> None:
        """Send a frame, wait until as many bytes came back."""
        self._num_unread = len(FRAME)
        self._back = self._loop.create_future()
        self._transport.write(FRAME)
        await self._back

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._num_unread -= len(data)
        if not self._num_unread:
            self._back.set_result(None)

    def close(self) -> None:
        self._transport.close()


class Echoes:
    """Connections to processes that echo."""

    def __init__(self, loop: asyncio.Runner, echoes: list[Echo], pids: list[int]) -> None:
        self.pids = pids
        self._runner = loop
        self._calls = [echo.round_trip for echo in echoes]

    def warm_up(self) -> None:
        self._runner.run(call_each(self._calls))

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        return self._runner.run(step_concurrently(self._calls, seconds, latencies_s))


@contextmanager
def echoes(size: int) -> Iterator[Echoes]:
    """A process for each connection."""
    fork = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        near, pids = [], []
        for _ in range(size):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            process = fork.Process(target=_echo, args=(theirs,), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            near.append(ours)
            pids.append(process.pid or 0)
        loop = stack.enter_context(runner())
        clients = loop.run(_connect(near))
        yield Echoes(loop, clients, pids)
        loop.run(_close(clients))


async def _connect(connections: list[socket.socket]) -> list[Echo]:
    loop = asyncio.get_running_loop()
    return [(await loop.create_unix_connection(Echo, sock=one))[1] for one in connections]


async def _close(clients: list[Echo]) -> None:
    for client in clients:
        client.close()


def _echo(connection: socket.socket) -> None:
    # Without Python objects on the way: the fastest loop there is.
    receive, send = partial(os.read, connection.fileno()), partial(os.write, connection.fileno())
    while data := receive(4096):
        send(data)
