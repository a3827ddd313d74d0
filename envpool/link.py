"""What a host and its clients say to each other: requests with ids, answered in any order.

Frames are those of `envpool/frames.py`: a 4-byte length, then msgpack. A `Link` is either end of a
connection; what it hears it hands to its owner.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from configs.schema import PoolSection
from envpool.frames import FrameError, Outcome, Splitter, pack
from envpool.nursery import Death
from envpool.session import StepResult
from envpool.task import Config, PoolKey, Task

# Of the protocol: a client of another one is refused.
FORMAT = 1


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """First of a connection. Answered by `Done`, or by `Refusal` and its end."""

    id: int
    token: str
    format: int = FORMAT


class PlugIn(msgspec.Struct, frozen=True, kw_only=True, tag="plug_in"):
    """Serve a version of a pool. Answered by `PluggedIn` or `Refusal`."""

    id: int
    name: str
    section: PoolSection
    files: Mapping[str, bytes] | None
    """Of a pool whose source is a path; it lies where the client is."""


class Retire(msgspec.Struct, frozen=True, kw_only=True, tag="retire"):
    """Open no more sessions of a version. Answered by `Done`."""

    id: int
    key: PoolKey


class DrawFrom(msgspec.Struct, frozen=True, kw_only=True, tag="draw_from"):
    """Answered by `DrawnFrom` or `Fault`."""

    id: int
    key: PoolKey
    env: str
    level: int
    seed: int
    count: int


class TryOut(msgspec.Struct, frozen=True, kw_only=True, tag="try_out"):
    """Answered by `Done`, `Refusal` (a mistake in the environment) or `Fault`."""

    id: int
    key: PoolKey
    env: str
    level: int


class Open(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """Answered by `Opened` or `Fault`."""

    id: int
    task: Task
    is_suspect: bool = False
    """Of having ended a process that it shared with others."""


class Act(msgspec.Struct, frozen=True, kw_only=True, tag="act"):
    """One action. Answered by `Acted` or `Fault`; repeated under its number, by the same answer."""

    id: int
    session: int
    number: int
    """Of the action in its session, from 1."""
    action: str


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """Answered by `Done` once the session is over."""

    id: int
    session: int


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    id: int


class PluggedIn(msgspec.Struct, frozen=True, kw_only=True, tag="plugged_in"):
    id: int
    key: PoolKey
    envs: list[str]
    layers: list[str]


class DrawnFrom(msgspec.Struct, frozen=True, kw_only=True, tag="drawn_from"):
    id: int
    configs: list[Config]


class Opened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    id: int
    session: int
    pid: int
    prompt: str
    tools: list[dict[str, Any]]


class Acted(msgspec.Struct, frozen=True, kw_only=True, tag="acted"):
    id: int
    result: StepResult


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    """What was asked is wrong: a ConfigError where it was asked."""

    id: int
    error: str


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag="fault"):
    """An EnvFault where it was asked."""

    id: int
    outcome: Outcome
    message: str
    death: Death | None = None
    """How the session's process ended, if it did."""


Question = Hello | PlugIn | Retire | DrawFrom | TryOut | Open | Act | Leave
Answer = Done | PluggedIn | DrawnFrom | Opened | Acted | Refusal | Fault

decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode

M = TypeVar("M")

# A peer whose machine is gone is noticed after this many seconds of silence, and as many unread.
SILENCE_S = 30
_PROBES = 3


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice that the other machine is gone: a connection of its own never ends."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    pause_s = SILENCE_S // (_PROBES + 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, pause_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause_s)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)


class Link(asyncio.Protocol):
    """One end of a connection: frames in, frames out."""

    def __init__(
        self,
        decode: Callable[[bytes | memoryview], M],
        *,
        heard: "Callable[[Link, M], None]",
        ended: "Callable[[Link], None]",
    ) -> None:
        """`heard` is called for each message; `ended` once, when the connection is over."""
        self._decode = decode
        self._heard = heard
        self._ended = ended
        self._splitter = Splitter()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Question | Answer) -> None:
        """Send, if anybody is there. Raises FrameError for a message that is too long."""
        frame = pack(message)
        if self._transport is not None:
            self._transport.write(frame)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once: a `close` first waits until all that was sent is read."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, as the transports of uvloop are no subclass.
        self._transport = cast(asyncio.Transport, transport)
        keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                self._heard(self, self._decode(body))
        # The last two: text that is none, and what is nested too deeply.
        except (FrameError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.close()  # whoever is there speaks something else

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._ended(self)
