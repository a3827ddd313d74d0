"""Process pools, with a process for each core.

A process pool has no place for an episode: it gives a step to any of its processes. Each here keeps
environments of its own that it steps in turn, which is all the work and none of the bookkeeping.
"""

import importlib
import multiprocessing
import multiprocessing.pool
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from envpool.bench.system import ACTION, CONFIG, SystemMissingError, num_cores
from envpool.bench.variants import pool
from envpool.env import ToolEnv

_fork = multiprocessing.get_context("fork")
# The environment of a process of a pool; only ever set there.
_env: ToolEnv | None = None

# Starts a step, has the function called when it is done.
Submit = Callable[[Callable[[Any], None]], object]


class Tasks:
    """A process pool kept busy: as many steps under way as there are environments."""

    def __init__(self, submit: Submit, size: int, pids: list[int]) -> None:
        self.pids = pids
        self._submit = submit
        self._size = size

    def warm_up(self) -> None:
        self.load(0.0, [])

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        before = len(latencies_s)
        clock = time.perf_counter
        stop = clock() + seconds
        left = threading.Semaphore(0)

        def ask() -> None:
            asked = clock()

            def on_done(_: object) -> None:
                now = clock()
                latencies_s.append(now - asked)
                if now < stop:
                    ask()
                else:
                    left.release()

            self._submit(on_done)

        for _ in range(self._size):
            ask()
        for _ in range(self._size):
            left.acquire()
        return len(latencies_s) - before


@contextmanager
def multiprocessing_pool(size: int) -> Iterator[Tasks]:
    """`multiprocessing.Pool`, with a process for each core."""
    with _fork.Pool(num_cores(), _make_env) as workers:
        pids = [child.pid or 0 for child in multiprocessing.active_children()]
        yield Tasks(lambda on_done: workers.apply_async(_step, callback=on_done), size, pids)
        workers.close()
        workers.join()


@contextmanager
def pebble_pool(size: int) -> Iterator[Tasks]:
    """pebble's pool, with a process for each core and a deadline for each step."""
    try:
        pebble = importlib.import_module("pebble")
    except ModuleNotFoundError as error:
        raise SystemMissingError(
            "pebble is not installed (it comes with pip install '.[dev]')"
        ) from error

    with pebble.ProcessPool(num_cores(), initializer=_make_env, context=_fork) as workers:

        def submit(on_done: Callable[[Any], None]) -> object:
            return workers.schedule(_step, timeout=10).add_done_callback(on_done)

        tasks = Tasks(submit, size, [])
        tasks.warm_up()
        tasks.pids = [child.pid or 0 for child in multiprocessing.active_children()]
        yield tasks


def _make_env() -> None:
    global _env
    _env = pool["sum_list"]()
    _env.reset(seed=0, options=CONFIG)


def _step() -> object:
    assert _env is not None
    return _env.step(ACTION)
