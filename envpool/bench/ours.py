"""Ours: sessions of an `EnvPool` in the ways it can be set up."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.schema import EnvPoolSection, PoolSection
from envpool.bench.system import ACTION, CONFIG, call_each, runner, step_concurrently
from envpool.pool import EnvPool, Session
from envpool.remote import Hosts
from envpool.task import Task

SOURCE = "envpool.bench.variants:pool"
# Nothing here is slow enough to be killed, on whatever machine.
TIMEOUT_S = 120.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Mode:
    """A way to set up a pool. `setting`: what is written under `[pools.<name>]`."""

    name: str
    setting: Mapping[str, Any]
    is_hosted: bool = False
    """Behind a host: another process, which relays."""


# The first is what the peers are compared with. Another way to reach sessions is another line here.
MODES = (
    Mode(name="sandbox", setting={"trusted": False}),
    Mode(name="no_sandbox", setting={"trusted": True}),
    Mode(name="shared", setting={"trusted": True, "sessions_per_worker": 32}),
    Mode(name="host", setting={"trusted": False}, is_hosted=True),
    Mode(name="host_shared", setting={"trusted": True, "sessions_per_worker": 32}, is_hosted=True),
)


class Sessions:
    """Open sessions of a pool, each a step at a time."""

    def __init__(self, loop: asyncio.Runner, sessions: list[Session]) -> None:
        self.pids: Sequence[int] = list({session.pid for session in sessions})
        self._runner = loop
        self._calls = [partial(session.step, ACTION) for session in sessions]

    def warm_up(self) -> None:
        self._runner.run(call_each(self._calls))

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        return self._runner.run(step_concurrently(self._calls, seconds, latencies_s))


@contextmanager
def sessions(mode: Mode, env: str, size: int) -> Iterator[Sessions]:
    """As many sessions of one environment, session number n with seed n."""
    with runner() as loop, ExitStack() as stack:
        if mode.is_hosted:
            address = stack.enter_context(host_process())
            pool: EnvPool | Hosts = loop.run(start_hosted(mode, address))
        else:
            pool = loop.run(start(mode, size))
        try:
            tasks = [make_task(pool, env, CONFIG, seed) for seed in range(size)]
            yield Sessions(loop, loop.run(open_all(pool, tasks)))
        finally:
            loop.run(pool.close())


async def start(mode: Mode, size: int) -> EnvPool:
    """A pool with room for `size` sessions."""
    limits = EnvPoolSection(
        max_sessions=size, start_timeout_s=TIMEOUT_S, step_timeout_s=TIMEOUT_S, cpu_s=3600
    )
    return await EnvPool.start({"bench": _section(mode)}, limits=limits)


async def start_hosted(mode: Mode, address: str) -> Hosts:
    """The same pool, served by a host."""
    limits = EnvPoolSection(start_timeout_s=TIMEOUT_S, step_timeout_s=TIMEOUT_S)
    return await Hosts.start([address], {"bench": _section(mode)}, limits=limits)


@contextmanager
def host_process() -> Iterator[str]:
    """A host in a process of its own, and its address."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/host.sock"
        command = [sys.executable, "-m", "envpool.host", "--listen", address]
        with subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                assert process.stdout is not None
                process.stdout.readline()  # it is ready
                yield address
            finally:
                process.terminate()


def _section(mode: Mode) -> PoolSection:
    return PoolSection(source=SOURCE, **mode.setting)


async def open_all(pool: EnvPool | Hosts, tasks: Sequence[Task]) -> list[Session]:
    """Sessions of all `tasks`, opened at the same time."""
    async with asyncio.TaskGroup() as group:
        opening = [group.create_task(pool.open(task), name=f"open {task.seed}") for task in tasks]
    return [one.result() for one in opening]


def make_task(pool: EnvPool | Hosts, env: str, config: dict[str, Any], seed: int) -> Task:
    version = pool.versions()["bench"]
    return Task(pool="bench", pool_version=version, env=env, config=config, seed=seed)
