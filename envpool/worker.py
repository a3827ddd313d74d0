"""The loop of a session process: one environment, one socket, until the socket closes.

Whatever the environment raises becomes a typed reply; the loop goes on. A request id seen before gets
the recorded reply, so that a request may be repeated when its reply was lost.
"""

import math
import random
import socket
import traceback
from collections.abc import Mapping
from types import MappingProxyType

from configs.load import ConfigError
from envpool.conformance import check_envs
from envpool.env import GraderError, ToolEnv, seed_globals
from envpool.folder import Tasks
from envpool.frames import (
    Draw,
    Drawn,
    Failed,
    FrameError,
    Outcome,
    Ready,
    Reply,
    Request,
    Start,
    Step,
    Stepped,
    Tried,
    Try,
    decode_request,
    pack,
    read_frames,
)
from envpool.source import PoolSource

_NONE: Tasks = MappingProxyType({})
# Characters of a traceback that are kept: its end says the most.
MAX_ERROR_CHARS = 8000


def serve(
    connection: socket.socket, envs: Mapping[str, type[ToolEnv]], tasks: Tasks = _NONE
) -> None:
    """Answer requests on a blocking socket until its peer closes it."""
    session = Session(envs, tasks)
    try:
        for body in read_frames(connection):
            connection.sendall(session.answer(decode_request(body)))
    finally:
        session.close()


class Session:
    """One environment and the replies it has given; a new start begins anew."""

    def __init__(self, envs: Mapping[str, type[ToolEnv]], tasks: Tasks = _NONE) -> None:
        """`tasks`: configurations that stand in for what an environment would draw."""
        self._envs = envs
        self._tasks = tasks
        self._env: ToolEnv | None = None
        self._replies: dict[int, bytes] = {}

    def answer(self, request: Request) -> bytes:
        """The frame that answers a request, recorded under the request's id."""
        if request.id not in self._replies:
            if isinstance(request, Start):
                self._forget()
            self._replies[request.id] = _pack_or_fail(self._reply(request))
        return self._replies[request.id]

    def close(self) -> None:
        if self._env is not None:
            self._env.close()

    def _forget(self) -> None:
        """Leave nothing of the session before, whatever its environment does when it is closed."""
        self._replies.clear()
        env, self._env = self._env, None
        if env is not None:
            try:
                env.close()
            except (Exception, SystemExit):  # noqa: BLE001 - the fault boundary: it is over
                traceback.print_exc()

    def _reply(self, request: Request) -> Reply:
        try:
            match request:
                case Start():
                    return self._start(request)
                case Draw():
                    return self._draw(request)
                case Try():
                    return self._try(request)
                case Step():
                    return self._step(request)
        except GraderError:
            return _failed(request.id, Outcome.GRADER_ERROR)
        except MemoryError:
            return _failed(request.id, Outcome.OOM)
        # The fault boundary of the environment's code, which may also call sys.exit().
        except (Exception, SystemExit):  # noqa: BLE001
            return _failed(request.id, Outcome.ENV_ERROR)

    def _start(self, request: Start) -> Ready:
        seed_globals(request.seed)
        self._env = self._envs[request.env]()
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

    def _step(self, request: Step) -> Stepped:
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


def _pack_or_fail(reply: Reply) -> bytes:
    try:
        return pack(reply)
    # TypeError, ValueError: an observation that is not text, or not valid text.
    except (FrameError, TypeError, ValueError):
        return pack(_failed(reply.id, Outcome.ENV_ERROR))


def _failed(request_id: int, outcome: Outcome) -> Failed:
    """A reply about the exception being handled."""
    text = traceback.format_exc()[-MAX_ERROR_CHARS:]
    # A lone surrogate in a message cannot travel.
    return Failed(id=request_id, outcome=outcome, error=text.encode(errors="replace").decode())
