"""What is measured of a system that steps environments, and the closed loops that load it.

A closed loop: each session asks for its next step as soon as it has the answer to the last. Some systems
only step all their environments together; there the latency of a step is that of the whole batch.
"""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import uvloop

from envpool.bench.processes import private_mib, tree_cpu_s
from envpool.env import call_text

CONFIG = {"numbers": [3, 1, 4, 1, 5]}
ACTION = call_text("get", {"index": 2})

Call = Callable[[], Awaitable[object]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Measured:
    """One system under load, once, or the medians of several times."""

    steps_per_s: float
    steps_per_cpu_s: float
    """Per CPU second of all its processes, the client included."""
    p50_ms: float
    p99_ms: float
    private_mib: float
    """Of one worker process; 0 where there is none."""
    start_s: float
    """Until every environment is ready for its first step."""


class System(Protocol):
    """A system with its environments started."""

    @property
    def pids(self) -> Sequence[int]:
        """Process ids of its workers."""
        ...

    def warm_up(self) -> None:
        """Step every environment once."""
        ...

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        """Step for about this long; returns the steps made."""
        ...


class SystemMissingError(Exception):
    """A system cannot be measured here; the text says why."""


Start = Callable[[int], AbstractContextManager[System]]


class Candidate:
    """A system to measure: its name in the results, its size, what was found."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.found: list[Measured] = []
        self.skipped = ""
        """Why it could not be measured."""

    def measure(self, seconds: float) -> Measured:
        """Start the system, load it, end it. Raises SystemMissingError."""
        raise NotImplementedError


class Local(Candidate):
    """One that is started from this process."""

    def __init__(self, name: str, size: int, start: Start) -> None:
        super().__init__(name, size)
        self._start = start

    def measure(self, seconds: float) -> Measured:
        """Start the system, load it, end it. Raises SystemMissingError."""
        began = time.perf_counter()
        with self._start(self.size) as system:
            system.warm_up()
            start_s = time.perf_counter() - began
            latencies_s: list[float] = []
            cpu_s = -tree_cpu_s()
            began = time.perf_counter()
            steps = system.load(seconds, latencies_s)
            elapsed_s = time.perf_counter() - began
            cpu_s += tree_cpu_s()
            return Measured(
                steps_per_s=steps / elapsed_s,
                steps_per_cpu_s=steps / cpu_s,
                p50_ms=1e3 * percentile(latencies_s, 0.5),
                p99_ms=1e3 * percentile(latencies_s, 0.99),
                private_mib=private_mib(system.pids),
                start_s=start_s,
            )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of `values` does not pass."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def runner() -> asyncio.Runner:
    """Runs coroutines on the loop that Ray's actors have: the same for every client."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def step_concurrently(calls: Sequence[Call], seconds: float, latencies_s: list[float]) -> int:
    """Make each of `calls` again and again, each in its own task; returns how many were made."""
    clock = time.perf_counter
    stop = clock() + seconds
    before = len(latencies_s)

    async def repeat(call: Call) -> None:
        now = clock()
        while now < stop:
            await call()
            later = clock()
            latencies_s.append(later - now)
            now = later

    async with asyncio.TaskGroup() as group:
        for index, call in enumerate(calls):
            group.create_task(repeat(call), name=f"session {index}")
    return len(latencies_s) - before


async def call_each(calls: Sequence[Call]) -> None:
    """Make each of `calls` once, all at the same time."""
    async with asyncio.TaskGroup() as group:
        for index, call in enumerate(calls):
            group.create_task(_once(call), name=f"warm-up {index}")


async def _once(call: Call) -> None:
    await call()


def step_together(step: Callable[[], object], seconds: float, latencies_s: list[float]) -> int:
    """Call `step`, which steps all environments, again and again; returns the calls made."""
    clock = time.perf_counter
    now = clock()
    stop = now + seconds
    before = len(latencies_s)
    while now < stop:
        step()
        later = clock()
        latencies_s.append(later - now)
        now = later
    return len(latencies_s) - before
