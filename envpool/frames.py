"""What the pool, its zygotes and its sessions say to each other, and how it is framed.

Sessions speak over a stream socket: a 4-byte big-endian length, then msgpack. Requests carry ids and
the reply repeats them. The control socket to a zygote keeps message boundaries (SOCK_SEQPACKET), so
its messages are bare msgpack; the socket of the session to fork travels beside the `Fork` message.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from configs.schema import PoolSection

# Longer frames are refused on both sides: an observation is text for a context window.
MAX_FRAME_BYTES = 16 * 2**20
HEADER_BYTES = 4
# Longest message on a control socket; a traceback is cut to fit.
MAX_CONTROL_BYTES = 64 * 2**10
# What is read from a socket at once.
READ_BYTES = 8 * 2**10


class Outcome(StrEnum):
    """How a call into an environment went."""

    OK = "ok"
    """It returned."""
    ENV_ERROR = "env_error"
    """The environment's code raised."""
    GRADER_ERROR = "grader_error"
    """The answer could not be judged."""
    TIMEOUT = "timeout"
    """It passed its deadline and was killed."""
    CRASHED = "crashed"
    """Its process ended."""
    OOM = "oom"
    """It ran out of memory."""
    CANCELLED = "cancelled"
    """The caller gave up."""


class FrameError(Exception):
    """A frame is too long or is not what the protocol allows."""


class Start(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="start"):
    """Pool to session: reset environment `env`. Answered by `Ready` or `Failed`."""

    id: int
    session: int = 0
    """Which of the sessions of the process, where it has several."""
    env: str
    config: dict[str, Any]
    seed: int


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="step"):
    """Pool to session: one action. Answered by `Stepped` or `Failed`."""

    id: int
    session: int = 0
    action: str


class Draw(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="draw"):
    """Pool to session: draw configurations of `env`. Answered by `Drawn` or `Failed`."""

    id: int
    session: int = 0
    env: str
    level: int
    seed: int
    count: int


class End(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Pool to session: it is closed, while others of its process go on. Not answered."""

    id: int
    session: int


class Drawn(msgspec.Struct, frozen=True, kw_only=True, tag="drawn"):
    """Session to pool: what `sample` gave, which may repeat itself."""

    id: int
    configs: list[dict[str, Any]]


class Try(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="try"):
    """Pool to session: begin an episode of `env` as a check of it. Answered by `Tried` or `Failed`."""

    id: int
    session: int = 0
    pool: str
    env: str
    level: int
    timeout_s: float


class Tried(msgspec.Struct, frozen=True, kw_only=True, tag="tried"):
    """Session to pool: what is wrong with the environment, with its place and cure; empty if nothing."""

    id: int
    mistake: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Session to pool: the task statement and the OpenAI schemas of the tools."""

    id: int
    prompt: str
    tools: list[dict[str, Any]]


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag="stepped"):
    """Session to pool: what the environment answered."""

    id: int
    observation: str
    reward: float
    terminated: bool
    truncated: bool
    is_bad_call: bool


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """Session to pool: the environment failed; `error` ends with the traceback."""

    id: int
    outcome: Outcome
    error: str


class Serve(msgspec.Struct, frozen=True, kw_only=True, tag="serve"):
    """Pool to zygote, once: import the source of this section. Answered by `Serving` or `Refused`."""

    name: str
    section: PoolSection
    folder: str
    """Where the copy of a pool lies whose source is a path; else empty."""
    is_sandboxed: bool
    """Shut in before the import, and each session once more."""
    memory_bytes: int
    """Address space of a sandboxed session."""
    cpu_s: int
    """CPU time of a sandboxed session."""
    max_processes: int
    pool_memory_bytes: int
    """Memory of all sandboxed sessions together, where that can be bounded; 0: half of what is here."""


class ShutIn(msgspec.Struct, frozen=True, kw_only=True, tag="shut_in"):
    """Zygote to pool, before it imports anything, so that no code of the pool has a say in it."""

    layers: list[str]
    """What isolates it, seen from within."""


class Serving(msgspec.Struct, frozen=True, kw_only=True, tag="serving"):
    """Zygote to pool: the source is imported; `Fork` may come."""

    version: str
    envs: list[str]


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Zygote to pool: the source cannot be served."""

    error: str


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    """Pool to zygote: fork a session for the socket that comes along. It answers with `Born`."""

    id: int


class ForkZygote(msgspec.Struct, frozen=True, kw_only=True, tag="fork_zygote"):
    """Pool to root: fork a zygote for the control socket that comes along. Answered by `Forked`."""

    id: int
    is_sandboxed: bool
    """In a namespace of process ids and in a control group, where these are allowed."""
    memory_bytes: int
    """Of that group; 0: half of what is here."""
    max_processes: int


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    """Root to pool; a descriptor of the process comes along."""

    id: int
    pid: int
    layers: list[str]
    """What isolates it, seen from outside."""


class Born(msgspec.Struct, frozen=True, kw_only=True, tag="born"):
    """Session to pool, over the control socket, before anything else of it.

    The kernel adds which process sends it: in a namespace nobody knows their number outside.
    """

    id: int


class NotForked(msgspec.Struct, frozen=True, kw_only=True, tag="not_forked"):
    """Zygote or root to pool."""

    id: int
    outcome: Outcome
    error: str


class Kill(msgspec.Struct, frozen=True, kw_only=True, tag="kill"):
    """Pool to zygote: end session `id`. The zygote kills, as it knows which pids are still its own."""

    id: int


class Exited(msgspec.Struct, frozen=True, kw_only=True, tag="exited"):
    """Zygote to pool: session `id` is gone and reaped. `status` is negative for a signal."""

    id: int
    status: int


Request = Start | Step | Draw | Try | End
Reply = Ready | Stepped | Drawn | Tried | Failed
Order = Serve | Fork | ForkZygote | Kill
Report = ShutIn | Serving | Refused | Forked | Born | NotForked | Exited

_pack_length = struct.Struct(">I").pack
_unpack_length = struct.Struct(">I").unpack_from
_encoder = msgspec.msgpack.Encoder()
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_report = msgspec.msgpack.Decoder(Report).decode


def pack(message: msgspec.Struct) -> bytes:
    """One frame; raises FrameError when it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(
            f"{type(message).__name__} frame of {len(body)} bytes: at most {MAX_FRAME_BYTES} allowed"
        )
    return _pack_length(len(body)) + body


def pack_control(message: Order | Report) -> bytes:
    """One message of a control socket; raises FrameError when it is too long."""
    body = _encoder.encode(message)
    if len(body) > MAX_CONTROL_BYTES:
        raise FrameError(
            f"{type(message).__name__} message of {len(body)} bytes: at most {MAX_CONTROL_BYTES}"
        )
    return body


class Splitter:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes | memoryview) -> Sequence[bytes | memoryview]:
        """Add what was read, take the frames it completes. Raises FrameError for one too long.

        A body may be a part of `data`: decode it before that is written to again.
        """
        if not self._rest and len(data) >= HEADER_BYTES:
            # Nearly always exactly one frame was read: nothing is copied then.
            (length,) = _unpack_length(data)
            if length == len(data) - HEADER_BYTES and length <= MAX_FRAME_BYTES:
                return (data[HEADER_BYTES:],)
        self._rest += data
        bodies, start = [], 0
        while len(self._rest) - start >= HEADER_BYTES:
            (length,) = _unpack_length(self._rest, start)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {length} bytes: at most {MAX_FRAME_BYTES} allowed")
            end = start + HEADER_BYTES + length
            if len(self._rest) < end:
                break
            bodies.append(bytes(self._rest[start + HEADER_BYTES : end]))
            start = end
        del self._rest[:start]
        return bodies


def read_frames(connection: socket.socket) -> Iterator[bytes | memoryview]:
    """Frame bodies from a blocking socket until its peer closes it."""
    splitter = Splitter()
    while data := connection.recv(READ_BYTES):
        yield from splitter.feed(data)
