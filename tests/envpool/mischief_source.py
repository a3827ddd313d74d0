"""A pool whose module tries what it can while it is imported; its environment tells what it got."""

import os
import signal
import socket
from random import Random
from typing import Any

import msgspec

from envpool.env import ToolEnv

GOT: list[str] = []


def attempt(name: str, deed: Any) -> None:
    try:
        deed()
    except OSError:
        return
    GOT.append(name)


attempt("read", lambda: open("/etc/passwd").close())
attempt("write", lambda: open("/tmp/mischief", "w").close())
attempt("network", socket.socket)
for pid in range(2, 2**16):
    # It is process 1, or may name others but not signal them.
    attempt(f"signal {pid}", lambda pid=pid: os.kill(pid, signal.SIGTERM))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))


class Mischief(ToolEnv):
    """Tells what the import could do."""

    class Config(msgspec.Struct):
        number: int = 0

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {"number": rng.randrange(10**9)}

    def setup(self, config: Config) -> None:
        pass

    def statement(self) -> str:
        return ",".join(GOT) or "nothing"

    def reference(self) -> int:
        return 1


pool = {"mischief": Mischief}
