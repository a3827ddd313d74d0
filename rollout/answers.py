"""Answers of an actor in another process about its pools, with refusals as data.

Ray wraps what a method raises in an error of its own, with the traceback of a process that nobody asked
about: what the caller must tell apart travels as a record, and is raised again where it arrives.
"""

from collections.abc import Awaitable

import msgspec

from configs.load import ConfigError
from envpool.pool import EnvFault, Outcome, Plugged
from envpool.task import Config


class PlugAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of plugging a version of a pool."""

    plugged: Plugged | None = None
    error: str = ""

    @classmethod
    async def of(cls, plugging: Awaitable[Plugged]) -> bytes:
        """Packed, once it is known."""
        try:
            answer = cls(plugged=await plugging)
        except ConfigError as error:
            answer = cls(error=str(error))
        return _encode(answer)

    @staticmethod
    def open(packed: bytes) -> Plugged:
        """What was plugged. Raises ConfigError."""
        answer = msgspec.msgpack.decode(packed, type=PlugAnswer)
        if answer.plugged is None:
            raise ConfigError(answer.error)
        return answer.plugged


class TryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of trying an environment."""

    mistake: str = ""
    outcome: Outcome = Outcome.OK
    error: str = ""

    @classmethod
    async def of(cls, trying: Awaitable[None]) -> bytes:
        """Packed, once it is known."""
        answer = cls()
        try:
            await trying
        except ConfigError as error:
            answer = cls(mistake=str(error))
        except EnvFault as fault:
            answer = cls(outcome=fault.outcome, error=fault.message)
        return _encode(answer)

    @staticmethod
    def open(packed: bytes) -> None:
        """Raises ConfigError for a mistake, EnvFault when the trial did not end."""
        answer = msgspec.msgpack.decode(packed, type=TryAnswer)
        if answer.mistake:
            raise ConfigError(answer.mistake)
        if answer.outcome is not Outcome.OK:
            raise EnvFault(answer.outcome, answer.error)


class DrawAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of drawing configurations."""

    configs: list[Config] = []
    outcome: Outcome = Outcome.OK
    error: str = ""

    @classmethod
    async def of(cls, drawing: Awaitable[list[Config]]) -> bytes:
        """Packed, once it is known."""
        try:
            answer = cls(configs=await drawing)
        except EnvFault as fault:
            answer = cls(outcome=fault.outcome, error=fault.message)
        return _encode(answer)

    @staticmethod
    def open(packed: bytes) -> list[Config]:
        """What was drawn. Raises EnvFault."""
        answer = msgspec.msgpack.decode(packed, type=DrawAnswer)
        if answer.outcome is not Outcome.OK:
            raise EnvFault(answer.outcome, answer.error)
        return answer.configs


_encode = msgspec.msgpack.Encoder().encode
