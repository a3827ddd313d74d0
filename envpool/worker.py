"""The loop of a session process: one socket, until it closes, and one environment, or several.

Whatever the environment raises becomes a typed reply; the loop goes on. The last request, seen again, gets
the same reply again, so that a request may be repeated when its reply was lost.
"""

import math
import os
import random
import socket
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from configs.load import ConfigError
from envpool.conformance import check_envs
from envpool.env import GraderError, ToolEnv, seed_globals
from envpool.folder import Tasks
from envpool.frames import (
    READ_BYTES,
    Draw,
    Drawn,
    End,
    Failed,
    Outcome,
    Ready,
    Reply,
    Request,
    Splitter,
    Start,
    Step,
    Stepped,
    Tried,
    Try,
    decode_request,
    pack,
)
from envpool.source import PoolSource
from envpool.varied import Varied, playable

_NONE: Tasks = MappingProxyType({})
# An answer waits this long at most for those of the other requests that were read with its own.
MAX_UNSENT_S = 0.001
# Characters of a traceback that are kept: its end says the most.
MAX_ERROR_CHARS = 8000


def serve(
    connection: socket.socket, envs: Mapping[str, type[ToolEnv]], tasks: Tasks = _NONE
) -> None:
    """Answer requests on a blocking socket until its peer closes it."""
    sessions = defaultdict[int, Session](partial(Session, envs, tasks))
    # Between two steps other processes had the core and its caches, so that every object met on the
    # way costs several times what it costs in a loop: few are.
    read, feed = partial(os.read, connection.fileno(), READ_BYTES), Splitter().feed
    send = connection.sendall
    try:
        while data := read():
            bodies = feed(data)
            if len(bodies) == 1:
                request = decode_request(bodies[0])
                send(sessions[request.session].answer(request))
            else:
                _answer_all(bodies, sessions, send)
    finally:
        for session in sessions.values():
            session.close()


def _answer_all(
    bodies: Sequence[bytes | memoryview],
    sessions: Mapping[int, "Session"],
    send: Callable[[bytes], None],
) -> None:
    """Answer requests of several sessions, those that take no time with one message."""
    unsent: list[bytes] = []
    sent_at = time.monotonic()
    for body in bodies:
        request = decode_request(body)
        unsent.append(sessions[request.session].answer(request))
        # Nobody waits for the slow step of another.
        if time.monotonic() - sent_at > MAX_UNSENT_S:
            send(b"".join(unsent))
            unsent.clear()
            sent_at = time.monotonic()
    send(b"".join(unsent))


class Session:
    """One environment and the last reply it has given; a new start begins anew."""

    def __init__(self, envs: Mapping[str, type[ToolEnv]], tasks: Tasks = _NONE) -> None:
        """`tasks`: configurations that stand in for what an environment would draw."""
        self._envs = envs
        self._tasks = tasks
        self._env: ToolEnv | Varied | None = None
        # A request is only made again when its reply was lost, so it is the last one.
        self._last_id = -1
        self._last_reply = b""

    def answer(self, request: Request) -> bytes:
        """The frame that answers a request, if any; the same one if the request is made again."""
        if isinstance(request, End):
            self._forget()
            return b""
        if request.id != self._last_id:
            try:
                self._last_reply = pack(self._reply(request))
            except GraderError:
                self._last_reply = pack(_failed(request.id, Outcome.GRADER_ERROR))
            except MemoryError:
                self._last_reply = pack(_failed(request.id, Outcome.OOM))
            # The fault boundary of the environment's code, which may also call sys.exit(), or give
            # an observation that is no text, is not valid text, or is too long.
            except (Exception, SystemExit):  # noqa: BLE001
                self._last_reply = pack(_failed(request.id, Outcome.ENV_ERROR))
            self._last_id = request.id
        return self._last_reply

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _forget(self) -> None:
        """Leave nothing of the session before, whatever its environment does when it is closed."""
        env, self._env = self._env, None
        if env is not None:
            try:
                env.close()
            except (Exception, SystemExit):  # noqa: BLE001 - the fault boundary: it is over
                traceback.print_exc()

    def _reply(self, request: Start | Step | Draw | Try) -> Reply:
        if isinstance(request, Start):
            return self._start(request)
        if isinstance(request, Draw):
            return self._draw(request)
        if isinstance(request, Try):
            return self._try(request)
        if self._env is None:
            raise RuntimeError("a step before the start")
        observation, reward, terminated, truncated, info = self._env.step(request.action)
        if not math.isfinite(reward):
            raise GraderError(f"the reward is {reward}: it must be a finite number")
        return Stepped(
            id=request.id,
            observation=observation,
            reward=float(reward),
            terminated=terminated,
            truncated=truncated,
            is_bad_call=info["is_bad_call"],
        )

    def _start(self, request: Start) -> Ready:
        self._forget()
        seed_globals(request.seed)
        self._env = playable(self._envs[request.env](), request.config)
        prompt, _ = self._env.reset(seed=request.seed, options=request.config)
        return Ready(id=request.id, prompt=prompt, tools=self._env.tools())

    def _draw(self, request: Draw) -> Drawn:
        seed_globals(request.seed)
        if any(env == request.env for env, _ in self._tasks):
            listed = self._tasks.get((request.env, request.level), [])
            begin = request.seed * request.count
            return Drawn(id=request.id, configs=listed[begin : begin + request.count])
        env, rng = self._envs[request.env], random.Random(request.seed)
        configs = [env.sample(rng, request.level) for _ in range(request.count)]
        return Drawn(id=request.id, configs=configs)

    def _try(self, request: Try) -> Tried:
        source = PoolSource(
            name=request.pool,
            version="",
            envs=self._envs,
            train=(),
            trusted=False,
            tasks=self._tasks,
        )
        try:
            check_envs(source, {request.env: [request.level]}, timeout_s=request.timeout_s)
        except ConfigError as error:
            return Tried(id=request.id, mistake=str(error))
        return Tried(id=request.id, mistake="")


def _failed(request_id: int, outcome: Outcome) -> Failed:
    """A reply about the exception being handled."""
    text = traceback.format_exc()[-MAX_ERROR_CHARS:]
    # A lone surrogate in a message cannot travel.
    return Failed(id=request_id, outcome=outcome, error=text.encode(errors="replace").decode())
