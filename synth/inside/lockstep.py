"""`Lockstep`: the true configuration and its alternatives, played at once with the same calls.

What a call shows is compared at once; what it does can be undone, and is noticed.
"""

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from envpool.env import ToolEnv, ToolInputError
from envpool.task import Config
from envpool.tools import Tool

from .candidate import begin, frozen, thawable

# What an alternative shows in which the environment's code raised.
FAULT = b"\0fault"

_encode = msgspec.json.Encoder().encode


class Call(msgspec.Struct, frozen=True):
    """A call whose arguments have been checked: converted once if they are plain values."""

    name: str
    arguments: Mapping[str, Any]
    is_plain: bool

    @classmethod
    def of(cls, tool: Tool, arguments: Mapping[str, Any]) -> "Call | None":
        """None for arguments that do not fit."""
        try:
            checked = tool.check(dict(arguments))
        except ToolInputError:
            return None
        is_plain = all(isinstance(v, int | float | str | None) for v in checked.values())
        # What is no plain value might be kept, and changed, by the one that it is given to.
        return cls(tool.name, checked if is_plain else dict(arguments), is_plain)


class Lockstep:
    """Environments at the same place of one sequence of calls; the first is the true one."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self.envs: list[ToolEnv] = [begin(config)[0] for config in configs]
        self.work = 0
        """Calls made so far, copies counted as `COPY` calls each."""

    def show(self, call: Call) -> list[Any]:
        """What a call shows in each of them; the true one's faults are raised."""
        self.work += len(self.envs)
        name, arguments = call.name, call.arguments
        shown = [self._one(self.envs[0], call)]
        for env in self.envs[1:]:
            try:
                if call.is_plain:
                    result = getattr(env, name)(**arguments)
                    shown.append(result if type(result) is str else _encode(result))
                else:
                    shown.append(self._one(env, call))
            except ToolInputError as error:
                shown.append(f"Error: {error}")
            # The fault boundary of the draft's code: an alternative may be one it cannot play.
            except (Exception, SystemExit):  # noqa: BLE001
                shown.append(FAULT)
        return shown

    def apart(self, call: Call) -> int:
        """Which alternatives a call tells from the true one: bit i for the i-th, from 0."""
        shown = self.show(call)
        true = shown[0]
        return sum(1 << i for i, one in enumerate(shown[1:]) if one != true)

    def save(self) -> bytes:
        """All hidden state."""
        self.work += COPY * len(self.envs)
        return thawable([vars(env) for env in self.envs])

    def restore(self, state: bytes) -> None:
        self.work += COPY * len(self.envs)
        for env, known in zip(self.envs, pickle.loads(state), strict=True):
            env.__dict__ = known

    def few(self) -> bytes:
        """The state of some of them, to see at little cost that a call did something."""
        self.work += COPY
        return frozen([vars(env) for env in self.envs[:3]])

    def key(self) -> bytes:
        """Equal for equal states, whichever of their parts are one object."""
        self.work += COPY * len(self.envs)
        return frozen([vars(env) for env in self.envs])

    def _one(self, env: ToolEnv, call: Call) -> Any:
        arguments = call.arguments
        if not call.is_plain:
            arguments = env._tools[call.name].check(dict(arguments))
        try:
            result = getattr(env, call.name)(**arguments)
        except ToolInputError as error:
            return f"Error: {error}"
        return result if type(result) is str else _encode(result)


# What it costs to copy one environment, in calls.
COPY = 4
