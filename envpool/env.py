"""`ToolEnv`: an environment that a language model plays through tool calls.

It is a `gymnasium.Env` whose actions and observations are text. A wrong call is an observation, which
the policy can recover from; any other exception of the environment's code is a fault and propagates,
so that it never becomes a reward. The first answer ends the episode, and no observation says whether
it was right.
"""

import math
import random
import string
import sys
from collections.abc import Generator, Iterator, Mapping
from random import Random
from typing import Any, ClassVar

import gymnasium
import msgspec
from gymnasium.spaces import Text

from configs.load import ConfigError
from envpool.task import VARIATION
from envpool.tools import (
    Arguments,
    DefinitionError,
    Schema,
    Tool,
    ToolInputError,
    at,
    call_text,
    check_type,
    describe,
    is_tool,
    mistake,
    parse_call,
    tool,
)

__all__ = ["GraderError", "Oracle", "ToolEnv", "ToolInputError", "at", "call_text", "tool"]

# Yields calls (tool name, arguments), is sent each observation, and ends with `done`.
Oracle = Generator[tuple[str, Arguments], str, None]

Info = dict[str, Any]

# What two floats may differ by and still be the same answer.
FLOAT_REL = 1e-6
FLOAT_ABS = 1e-9

_encode = msgspec.json.Encoder().encode

# Declared, not enforced: gymnasium's vector environments need spaces.
_TEXT = Text(max_length=65536, charset=string.printable)


class GraderError(Exception):
    """The environment could not judge an answer; the cause says why."""


def seed_globals(seed: int) -> None:
    """Seed the generators that an environment may use beside its own `np_random`."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


class ToolEnv(gymnasium.Env[str, str]):
    """Base of environments. A subclass declares what follows and methods marked `@tool`.

    An instance may be reset many times. It is deterministic given configuration and seed: chance
    comes from `self.np_random` only.
    """

    Config: ClassVar[type[msgspec.Struct]]
    """The hidden state at reset. Must refuse what the environment cannot play."""
    Answer: ClassVar[Any] = int
    """Type of the answer: anything msgspec can convert JSON to."""

    observation_space = _TEXT
    action_space = _TEXT

    _tools: ClassVar[dict[str, Tool]] = {}
    _is_over = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        names = [name for base in reversed(cls.__mro__) for name in vars(base)]
        members = [
            getattr(cls, name) for name in dict.fromkeys(names) if is_tool(getattr(cls, name))
        ]
        for member in members:
            if member.__name__ == "done":
                raise mistake(member, "the tool `done` is built in: set Answer instead")
            if member.__name__ in _TAKEN:
                raise mistake(member, "ToolEnv has a method of this name: choose another")
        try:
            check_type(cls.Answer)
        except TypeError as error:
            raise DefinitionError(f"class {cls.__qualname__}: Answer: {error}") from error
        cls._tools = {member.__name__: describe(member) for member in members}
        cls._tools["done"] = describe(ToolEnv.done, {"answer": cls.Answer})

    @classmethod
    def tools(cls) -> list[Schema]:
        """OpenAI function schemas of all tools, `done` last."""
        return [tool.schema for tool in cls._tools.values()]

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        """Draw a configuration; level 0 is the size for training, higher levels are harder."""
        raise NotImplementedError

    def setup(self, config: Any) -> None:
        """Start an episode from a validated `Config`."""
        raise NotImplementedError

    def statement(self) -> str:
        """The task in words. Must not reveal the hidden state."""
        raise NotImplementedError

    def reference(self) -> Any:
        """The right answer, never shown."""
        raise NotImplementedError

    def check(self, answer: Any) -> bool:
        """Whether an answer, already of type `Answer`, is right. Override where several are."""
        return same(answer, self.reference())

    def oracle(self) -> Oracle:
        """Play the episode and win it by calls alone, without a look at the hidden state."""
        raise NotImplementedError

    def done(self, answer: Any) -> str:
        """Give the answer and end the episode.

        Args:
            answer: The answer.
        """
        self._is_over = True
        return "done"

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, Info]:
        """Start an episode; `options` is the configuration. Raises ConfigError if it is not one."""
        if isinstance(options, Mapping) and VARIATION in options:
            raise ConfigError(
                f"configuration of {type(self).__name__}: {VARIATION!r} is not for the environment: "
                "play it on envpool.varied.playable(env, config)"
            )
        super().reset(seed=seed)
        try:
            config = msgspec.convert(options, type(self).Config)
        except msgspec.ValidationError as error:
            raise ConfigError(f"configuration of {type(self).__name__}: {error}") from error
        self.setup(config)
        self._is_over = False
        return self.statement(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Carry out one call; the reward is 1.0 for a right answer, else 0.0.

        A step after the end is a wrong call that changes nothing: the verdict was given once.
        """
        if self._is_over:
            return "Error: the episode is over", 0.0, True, False, {"is_bad_call": True}
        try:
            call = parse_call(action)
            tool = self._tools.get(call.name)
            if tool is None:
                raise ToolInputError(f"tools are {', '.join(self._tools)}")
            if call.name == "done":
                return self._answer(tool, call.arguments)
            result = getattr(self, call.name)(**tool.check(call.arguments))
        except ToolInputError as error:
            return f"Error: {error}", 0.0, False, False, {"is_bad_call": True}
        observation = result if isinstance(result, str) else _encode(result).decode()
        return observation, 0.0, False, False, {"is_bad_call": False}

    def _answer(self, tool: Tool, arguments: Arguments) -> tuple[str, float, bool, bool, Info]:
        """Judge an answer. One that is not of type `Answer` is a wrong call, not an answer."""
        if arguments.keys() == {"answer"}:
            arguments = {"answer": canonical(arguments["answer"], type(self).Answer)}
        answer = tool.check(arguments)["answer"]
        observation = self.done(answer)
        try:
            is_right = bool(self.check(answer))
        except Exception as error:  # the grader is code of its author
            raise GraderError(f"{type(self).__name__} could not judge {answer!r}") from error
        return observation, float(is_right), True, False, {"is_bad_call": False}


# Methods of a ToolEnv that are no tools: a tool of that name would take their place.
_TAKEN = frozenset(name for name in vars(ToolEnv) if not name.startswith("_"))


def canonical(value: Any, kind: Any) -> Any:
    """`value` in the form that `kind` has in JSON, where it can be read as one; else `value` itself.

    Numbers and structures written as text count: "7", "7.0", 7.0 and 7 are the same int, "[1, 2]" a
    list. A boolean is never a number, and where the answer may be text, text stays as it is.
    """
    for candidate in _readings(value):
        for strict in (True, False):
            try:
                return msgspec.to_builtins(msgspec.convert(candidate, kind, strict=strict))
            except (msgspec.ValidationError, RecursionError):
                continue
    return value


def _readings(value: Any) -> Iterator[Any]:
    """`value`, then the JSON that it may be the text of."""
    yield value
    if isinstance(value, str):
        try:
            yield msgspec.json.decode(value.strip())
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return


def same(answer: Any, reference: Any) -> bool:
    """Equality of answers: floats within `FLOAT_REL` or `FLOAT_ABS`, text but for outer blanks."""
    if isinstance(answer, bool) or isinstance(reference, bool):
        return answer is reference
    if isinstance(answer, float) or isinstance(reference, float):
        return math.isclose(answer, reference, rel_tol=FLOAT_REL, abs_tol=FLOAT_ABS)
    if isinstance(answer, str) and isinstance(reference, str):
        return answer.strip() == reference.strip()
    if isinstance(answer, list | tuple) and isinstance(reference, list | tuple):
        pairs = zip(answer, reference, strict=False)
        return len(answer) == len(reference) and all(same(a, b) for a, b in pairs)
    if isinstance(answer, dict) and isinstance(reference, dict):
        return answer.keys() == reference.keys() and all(
            same(answer[k], reference[k]) for k in answer
        )
    return answer == reference
