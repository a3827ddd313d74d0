"""Environments kept as bytes, and a process forked for every step: the way of servers of generated code.

`servers` does what such a server was found to do, but for HTTP: the environment's class is pickled by
value, as its module cannot be imported, a queue brings the result, and garbage is collected after every
step. It has a server for each core, as more would only share the cores. `forks` leaves out all that is
not needed: the class is pickled by name, a pipe brings the result, one process starts all forks.
"""

import gc
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import cloudpickle

from envpool.bench.system import ACTION, CONFIG, num_cores
from envpool.envs import sum_list

_fork = multiprocessing.get_context("fork")


class Servers:
    """Processes that serve a share of the environments each, one step at a time."""

    def __init__(self, connections: list[Connection], pids: list[int]) -> None:
        self.pids = pids
        self._connections = connections

    def warm_up(self) -> None:
        self.load(0.0, [])

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        before = len(latencies_s)
        for connection in self._connections:
            connection.send(seconds)
        for connection in self._connections:
            latencies_s += connection.recv()
        return len(latencies_s) - before


@contextmanager
def servers(size: int) -> Iterator[Servers]:
    with ExitStack() as stack:
        connections, pids = [], []
        for number in range(num_cores()):
            ours, theirs = _fork.Pipe()
            seeds = range(number, size, num_cores())
            process = _fork.Process(target=_serve, args=(theirs, seeds))
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            connections.append(ours)
            pids.append(process.pid or 0)
        yield Servers(connections, pids)


def _serve(connection: Connection, seeds: range) -> None:
    """Step the environments in turn for as many seconds as one is told."""
    cloudpickle.register_pickle_by_value(sum_list)
    envs = [_make(seed) for seed in seeds]
    steps = 0
    while True:
        stop = time.perf_counter() + connection.recv()
        latencies_s: list[float] = []
        while envs and (not latencies_s or time.perf_counter() < stop):
            asked, index = time.perf_counter(), steps % len(envs)
            results = _fork.Queue()
            process = _fork.Process(
                target=_step_into, args=(results, cloudpickle.dumps(envs[index]))
            )
            process.start()
            state, _ = results.get()
            envs[index] = pickle.loads(state)
            process.join()
            gc.collect()
            latencies_s.append(time.perf_counter() - asked)
            steps += 1
        connection.send(latencies_s)


def _step_into(results: Any, state: bytes) -> None:
    env = pickle.loads(state)
    result = env.step(ACTION)
    results.put((cloudpickle.dumps(env), result))


class Forks:
    """The same with as little as can be done, as many steps at once as there are cores."""

    pids: tuple[int, ...] = ()

    def __init__(self, size: int) -> None:
        self._states = [pickle.dumps(_make(seed)) for seed in range(size)]
        self._num_steps = 0

    def warm_up(self) -> None:
        self.load(0.0, [])

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        clock = time.perf_counter
        stop = clock() + seconds
        before = len(latencies_s)
        under_way: dict[Any, tuple[Any, int, float]] = {}

        def start() -> None:
            asked, index = clock(), self._num_steps % len(self._states)
            ours, theirs = _fork.Pipe()
            process = _fork.Process(target=_step_once, args=(theirs, self._states[index]))
            process.start()
            theirs.close()
            under_way[ours] = process, index, asked
            self._num_steps += 1

        for _ in range(min(num_cores(), len(self._states))):
            start()
        while under_way:
            for ready in cast(list[Connection], wait(list(under_way))):
                process, index, asked = under_way.pop(ready)
                self._states[index], _ = pickle.loads(ready.recv_bytes())
                ready.close()
                process.join()
                latencies_s.append(clock() - asked)
                if clock() < stop:
                    start()
        return len(latencies_s) - before


@contextmanager
def forks(size: int) -> Iterator[Forks]:
    yield Forks(size)


def _step_once(connection: Connection, state: bytes) -> None:
    env = pickle.loads(state)
    result = env.step(ACTION)
    connection.send_bytes(pickle.dumps((pickle.dumps(env), result)))


def _make(seed: int) -> sum_list.SumList:
    env = sum_list.SumList()
    env.reset(seed=seed, options=CONFIG)
    return env
