"""A pool whose environment does, on request, what hostile or broken code does."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import time
from random import Random
from typing import Any

import msgspec

from envpool.env import ToolEnv, tool


class Hostile(ToolEnv):
    """Answer: 1; the answer 13 breaks the grader."""

    class Config(msgspec.Struct, forbid_unknown_fields=True):
        number: int = 0
        hangs: bool = False

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {"number": rng.randrange(10**9)}

    def setup(self, config: Config) -> None:
        self._count = 0
        if config.hangs:
            time.sleep(3600)

    def statement(self) -> str:
        return "Answer 1."

    def reference(self) -> int:
        return 1

    def check(self, answer: int) -> bool:
        if answer == 13:
            raise ZeroDivisionError("unlucky")
        return answer == 1

    @tool
    def count(self) -> int:
        """Count calls."""
        self._count += 1
        return self._count

    @tool
    def hang(self) -> int:
        """Never return, and ignore requests to end."""
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        while True:
            pass

    @tool
    def leave(self, status: int) -> int:
        """End the process.

        Args:
            status: Its exit status.
        """
        os._exit(status)

    @tool
    def quit(self) -> int:
        """Raise SystemExit."""
        sys.exit(3)

    @tool
    def segfault(self) -> str:
        """Read address 0."""
        return ctypes.string_at(0).decode()

    @tool
    def fail(self) -> int:
        """Raise."""
        raise RuntimeError("broken environment")

    @tool
    def exhaust(self) -> int:
        """Ask for more memory than there is."""
        return len(bytearray(2**62))

    @tool
    def say(self, length: int) -> str:
        """Return a long text.

        Args:
            length: In characters.
        """
        return "x" * length

    @tool
    def surrogate(self) -> str:
        """Return a text that is not valid UTF-8."""
        return "\ud800"

    @tool
    def variable(self, name: str) -> str:
        """Read an environment variable.

        Args:
            name: Which.
        """
        return os.environ.get(name, "unset")

    @tool
    def descriptors(self) -> int:
        """How many descriptors are open beyond the standard three, not counting the look itself."""
        return len([fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]) - 1

    @tool
    def blocked(self) -> bool:
        """Whether SIGINT is blocked."""
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    @tool
    def chance(self) -> float:
        """A number from the global generator."""
        return random.random()

    @tool
    def spawn(self) -> int:
        """Leave a process behind."""
        return subprocess.Popen(["sleep", "3600"]).pid

    @tool
    def run(self, code: str) -> str:
        """Run any code; what it leaves in `out` is the observation.

        Args:
            code: Python.
        """
        scope: dict[str, Any] = {"env": self}
        exec(code, scope)
        return str(scope.get("out"))


pool: dict[str, type[ToolEnv]] = {"hostile": Hostile}
