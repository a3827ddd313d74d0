"""`python -m envpool.host --listen PATH|HOST:PORT`: an env pool for the processes of one machine.

    actor --- unix socket ---> host --- EnvPool ---> sessions, each a process
    actor on another node --- tcp, token ----^

A host keeps nothing that its clients could not give it again: they say which pools to serve, and keep
the record of their sessions. So when it dies, sessions go on with another one, or with its successor. The
sessions of a client whose connection ends are closed.
"""

import argparse
import asyncio
import hmac
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from configs.load import ConfigError
from configs.schema import EnvPoolSection
from envpool.frames import FrameError, Outcome
from envpool.link import (
    FORMAT,
    Act,
    Acted,
    Answer,
    Done,
    DrawFrom,
    DrawnFrom,
    Fault,
    Hello,
    Leave,
    Link,
    Open,
    Opened,
    PluggedIn,
    PlugIn,
    Question,
    Refusal,
    Retire,
    TryOut,
    decode_question,
)
from envpool.pool import EnvPool
from envpool.session import EnvFault, Life

logger = logging.getLogger(__name__)


class Host:
    """Serves an env pool on sockets. Close it; `async with` does."""

    def __init__(self, pool: EnvPool, *, token: str = "") -> None:
        """Whoever connects must know `token`."""
        self._pool = pool
        self._token = token
        self._clients: dict[Link, Client] = {}
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []

    async def listen(self, address: str) -> str:
        """Listen at a path, or at `host:port`; returns the address, with the port that 0 became.

        Raises ConfigError where that cannot be, and for a port without a token.
        """
        loop = asyncio.get_running_loop()
        host, colon, port = address.rpartition(":")
        try:
            if colon and "/" not in address:
                if not self._token:
                    raise ConfigError(
                        f"--listen {address}: anybody who reaches the port could run code: a token is "
                        "needed (MILLRACE_TOKEN)"
                    )
                server = await loop.create_server(self._link, host, int(port))
                bound = server.sockets[0].getsockname()[1]
                address = f"{host}:{bound}"
            else:
                listening = await asyncio.to_thread(_unix_socket, Path(address))
                server = await loop.create_unix_server(self._link, sock=listening)
                self._paths.append(Path(address))
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"--listen {address}: {error}") from error
        self._servers.append(server)
        return address

    async def close(self) -> None:
        """End every connection, and the sessions with them. The pool is its owner's to close."""
        for server in self._servers:
            server.close()
        clients = list(self._clients.values())
        for client in clients:
            client.link.close()
        for client in clients:
            await client.gone()
        for path in self._paths:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _link(self) -> Link:
        link = Link(decode_question, heard=self._heard, ended=self._ended)
        self._clients[link] = Client(self._pool, link)
        return link

    def _heard(self, link: Link, question: Question) -> None:
        client = self._clients[link]
        if isinstance(question, Hello):
            is_known = hmac.compare_digest(question.token.encode(), self._token.encode())
            if is_known and question.format == FORMAT:
                client.is_welcome = True
                link.send(Done(id=question.id))
                return
            why = f"the host speaks format {FORMAT}" if is_known else "the token is wrong"
            link.send(Refusal(id=question.id, error=why))
        if client.is_welcome:
            client.answer(question)
        else:
            link.close()

    def _ended(self, link: Link) -> None:
        client = self._clients.pop(link)
        client.leave_all()


class Client:
    """One connection: its sessions, and what is being answered."""

    def __init__(self, pool: EnvPool, link: Link) -> None:
        self.link = link
        self.is_welcome = False
        self._pool = pool
        self._lives: dict[int, Life] = {}
        # The last action of a session, by number, and its answer: it may be asked for again.
        self._last: dict[int, tuple[int, asyncio.Task[Answer]]] = {}
        self._num_sessions = 0
        self._working: set[asyncio.Task[Any]] = set()

    def answer(self, question: Question) -> None:
        """Answer when the answer is there; a repeated action is not carried out again."""
        task = None
        if isinstance(question, Act):
            number, task = self._last.get(question.session, (0, None))
            task = task if question.number == number else None
        if task is None:
            name = f"{type(question).__name__} {question.id}"
            task = self._start(self._reply(question), name=name)
            if isinstance(question, Act):
                self._last[question.session] = question.number, task
        task.add_done_callback(partial(self._send, question.id))

    def leave_all(self) -> None:
        """The client is gone: what it had open is closed."""
        for task in self._working:
            task.cancel()
        for session in list(self._lives):
            self._start(self._leave(session), name=f"leave {session}")

    async def gone(self) -> None:
        """Wait until nothing of it is left."""
        while self._working:
            await asyncio.gather(*self._working, return_exceptions=True)
            await asyncio.sleep(0)  # their callbacks first

    def _start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    def _send(self, number: int, task: asyncio.Task[Answer]) -> None:
        """Send what came of a question, under the number that it was asked with."""
        if task.cancelled():
            return  # the client is gone
        try:
            self.link.send(msgspec.structs.replace(task.result(), id=number))
        except FrameError as error:
            self.link.send(Fault(id=number, outcome=Outcome.ENV_ERROR, message=str(error)))

    async def _reply(self, question: Question) -> Answer:
        try:
            return await self._do(question)
        except EnvFault as fault:
            life = self._lives.get(question.session) if isinstance(question, Act) else None
            death = life.death if life is not None else None
            return Fault(id=question.id, outcome=fault.outcome, message=fault.message, death=death)
        except ConfigError as error:
            return Refusal(id=question.id, error=str(error))
        # A process boundary: whoever asked must not wait for ever.
        except Exception as error:
            logger.exception("%s failed", type(question).__name__)
            message = f"the host failed: {type(error).__name__}: {error}"
            return Fault(id=question.id, outcome=Outcome.ENV_ERROR, message=message)

    async def _do(self, question: Question) -> Answer:
        number = question.id
        match question:
            case PlugIn():
                plugged = await self._pool.plug(
                    question.name, question.section, files=question.files
                )
                return PluggedIn(
                    id=number, key=plugged.key, envs=plugged.envs, layers=plugged.layers
                )
            case Retire():
                await self._pool.retire(question.key)
            case DrawFrom(key=key, env=env):
                configs = await self._pool.draw(
                    key, env, level=question.level, seed=question.seed, count=question.count
                )
                return DrawnFrom(id=number, configs=configs)
            case TryOut():
                await self._pool.try_env(question.key, question.env, level=question.level)
            case Open():
                return await self._open(question)
            case Act():
                life = self._lives.get(question.session)
                if life is None:
                    raise EnvFault(Outcome.CANCELLED, "there is no such session")
                return Acted(id=number, result=await life.step(question.action))
            case Leave():
                await self._leave(question.session)
            case Hello():
                pass
        return Done(id=number)

    async def _open(self, question: Open) -> Answer:
        life = await self._pool.open_life(question.task, question.is_suspect)
        self._num_sessions += 1
        session = self._num_sessions
        self._lives[session] = life
        if not self.link.is_open:  # its client left while it started
            await self._leave(session)
        return Opened(
            id=question.id, session=session, pid=life.pid, prompt=life.prompt, tools=life.tools
        )

    async def _leave(self, session: int) -> None:
        life = self._lives.pop(session, None)
        self._last.pop(session, None)
        if life is not None:
            await life.close()


def _unix_socket(path: Path) -> socket.socket:
    """A socket at `path`, for this user alone; one left behind by a host that died is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError("another host listens there")
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
    return listening


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; prints the addresses when it is ready."""
    parser = argparse.ArgumentParser(prog="python -m envpool.host", description=__doc__)
    parser.add_argument(
        "--listen", action="append", required=True, help="a path, or HOST:PORT (0: any free port)"
    )
    parser.add_argument(
        "--max-sessions", type=int, default=EnvPoolSection().max_sessions, help="live sessions"
    )
    parser.add_argument(
        "--allow-unsandboxed", action="store_true", help="serve untrusted pools without a sandbox"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    limits = EnvPoolSection(
        max_sessions=options.max_sessions, allow_unsandboxed=options.allow_unsandboxed
    )
    try:
        asyncio.run(_serve(options.listen, limits))
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


async def _serve(addresses: list[str], limits: EnvPoolSection) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    token = os.environ.pop("MILLRACE_TOKEN", "")
    async with (
        await EnvPool.start(limits=limits) as pool,
        Host(pool, token=token) as host,
    ):
        bound = [await host.listen(address) for address in addresses]
        sys.stdout.write(f"ready: {' '.join(bound)}\n")
        sys.stdout.flush()
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
