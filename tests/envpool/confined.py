"""`python -m tests.envpool.confined WHERE FOLDER`: an untrusted pool where less is allowed; prints its layers.

It is run as a process of its own, as what a process gives up it does not get back. Exits with 77 where
`WHERE` cannot be had here.
"""

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyseccomp as seccomp
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool.env import call_text
from envpool.pool import EnvPool
from envpool.task import Task
from tests.envpool.odd_pool import write_pool

CANNOT = 77
NOBODY = 65534
LIMITS = EnvPoolSection(max_sessions=8, memory_mb=512)
LEAVE = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(3600)
    os._exit(0)
os.wait()
"""
# Every flag of `clone` that makes a namespace.
_NEW = 0x7E020080


def refuse(*names: str, namespaces: bool = False) -> None:
    """Have these system calls fail from here on, as container runtimes do."""
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in names:
        made.add_rule(seccomp.ERRNO(errno.EPERM), name)
    for bit in range(32):
        if namespaces and _NEW >> bit & 1:
            flag = seccomp.Arg(0, seccomp.MASKED_EQ, 1 << bit, 1 << bit)
            made.add_rule(seccomp.ERRNO(errno.EPERM), "clone", flag)
    made.load()


def no_namespaces() -> None:
    """A container with the usual filter."""
    refuse("unshare", "setns", namespaces=True)


def no_cgroups() -> None:
    """One whose control groups are read-only, and that allows no namespaces either."""
    no_namespaces()
    refuse("rmdir", "mkdir", "mkdirat")


def ordinary_user() -> None:
    """A user without privileges."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    os.environ["HOME"] = "/"
    if not os.access(sys.executable, os.X_OK) or not os.access(os.__file__, os.R_OK):
        sys.exit(CANNOT)


def confined_user() -> None:
    """Such a user in such a container."""
    ordinary_user()
    no_namespaces()


WHERE: dict[str, Callable[[], None]] = {
    one.__name__: one for one in (no_namespaces, no_cgroups, ordinary_user, confined_user)
}


async def main(honest: Path, leaving: Path) -> None:
    async with await EnvPool.start(limits=LIMITS) as pool:
        key = (await pool.plug("odd", PoolSection(source=f"{honest}:pool"))).key
        task = Task(
            pool="odd", pool_version=key.version, env="odd_number", config={"number": 5}, seed=1
        )
        async with await pool.open(task) as session:
            os.kill(session.pid, 0)
            os.kill(session.pid, 9)
            assert (await session.step(call_text("look", {}))).observation == "1 first"
        with pytest.raises(ConfigError, match="still run"):
            await pool.plug("leaving", PoolSection(source=f"{leaving}:pool"))
        sys.stdout.write(",".join(pool.layers()["odd"]))


def write(folder: Path) -> None:
    """The sources, as modules: the copy of a directory could not be made everywhere."""
    for name, mischief in (("honest", ""), ("leaving", LEAVE)):
        file = write_pool(folder, name=f"confined_{name}.py") / f"confined_{name}.py"
        file.write_text(file.read_text() + "\npool = {'odd_number': OddNumber}\n" + mischief)


if __name__ == "__main__":
    write(Path(sys.argv[2]))
    sys.path.append(sys.argv[2])
    WHERE[sys.argv[1]]()
    asyncio.run(main(Path("confined_honest"), Path("confined_leaving")))
