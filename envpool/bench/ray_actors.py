"""`python -m envpool.bench.ray_actors SIZE SECONDS`: Ray actors with an environment each.

Prints a `Measured` as JSON. Only ever run in a process of its own (`envpool/bench/apart.py`).
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray

from envpool.bench.system import (
    ACTION,
    CONFIG,
    Local,
    step_together,
)
from envpool.bench.variants import pool


class Actor:
    """One environment."""

    def __init__(self, seed: int) -> None:
        self._env = pool["sum_list"]()
        self._env.reset(seed=seed, options=CONFIG)

    def pid(self) -> int:
        return os.getpid()

    def step(self, action: str) -> object:
        return self._env.step(action)


class Actors:
    """Actors that all step at once, then are waited for: the fastest of Ray's ways here."""

    def __init__(self, size: int) -> None:
        # No CPU is set aside, so that there may be more actors than cores.
        make: Any = ray.remote(num_cpus=0)(Actor)
        self._actors: list[Any] = [make.remote(seed) for seed in range(size)]
        self.pids: list[int] = ray.get([actor.pid.remote() for actor in self._actors])

    def warm_up(self) -> None:
        self._step()

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        return len(self._actors) * step_together(self._step, seconds, latencies_s)

    def _step(self) -> None:
        ray.get([actor.step.remote(ACTION) for actor in self._actors])


@contextmanager
def ray_actors(size: int) -> Iterator[Actors]:
    """A local cluster and its actors; starting both is measured."""
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield Actors(size)
    finally:
        ray.shutdown()


def main(arguments: list[str]) -> int:
    """Measure as many actors as the first argument says, for as many seconds as the second."""
    size, seconds = int(arguments[0]), float(arguments[1])
    found = Local("ray_actors", size, ray_actors).measure(seconds)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
