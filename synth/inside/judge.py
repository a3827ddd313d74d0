"""The environment through which the factory has its own functions called beside code that nobody trusts.

It lies at the top of a pool's directory, so that the pool, its limits and its faults serve for jobs, too.
What it answers is made in a process in which untrusted code may have run: it may be a lie about that code,
and of nothing else.
"""

import importlib
from typing import Any

import msgspec

from envpool.env import ToolEnv, tool


class Nothing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A judge hides nothing."""


class Judge(ToolEnv):
    """Carries out jobs; it is never won."""

    Config = Nothing

    def setup(self, config: Nothing) -> None:
        pass

    def statement(self) -> str:
        return "Carry out jobs."

    def reference(self) -> int:
        return 0

    @tool
    def run(self, job: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Call a function with arguments and give what it returns.

        Args:
            job: `module:function`.
            arguments: Its arguments by name.
        """
        module, _, function = job.partition(":")
        return {"result": getattr(importlib.import_module(module), function)(**arguments)}
