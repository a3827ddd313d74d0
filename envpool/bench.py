"""`python launch.py bench envpool`: steps per second of the pool, against a bound and a peer.

The bound is as many processes that only echo bytes over a socketpair: no environment, no messages. The
peer is gymnasium's AsyncVectorEnv, which steps the same environment in lock step. All are run in turn,
several times, and the medians are compared.
"""

import argparse
import asyncio
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from statistics import median

from gymnasium.vector import AsyncVectorEnv
from rich.console import Console
from rich.table import Table

from configs.schema import EnvPoolSection, PoolSection
from envpool.env import call_text
from envpool.envs.sum_list import SumList
from envpool.pool import EnvPool
from envpool.task import Task

POOL = PoolSection(source="envpool.envs:basics", trusted=True)
CONFIG = {"numbers": [3, 1, 4, 1, 5]}
ACTION = call_text("get", {"index": 2})
# About the size of a framed step and its reply.
MESSAGE = b"x" * 80
ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Measure, print a table, and with --json one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="launch.py bench envpool", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON at the end")
    parser.add_argument("--sessions", type=int, default=16, help="sessions at once")
    parser.add_argument("--steps", type=int, default=300, help="steps per session and round")
    options = parser.parse_args(arguments)
    count, steps = options.sessions, options.steps
    rates: dict[str, list[float]] = {"pool": [], "socketpairs": [], "AsyncVectorEnv": []}
    open_s: list[float] = []
    for _ in range(ROUNDS):
        rates["AsyncVectorEnv"].append(_vector_rate(count, steps))
        rates["socketpairs"].append(_echo_rate(count, steps))
        rates["pool"].append(asyncio.run(_pool_rate(count, steps, open_s)))
    medians = {name: median(values) for name, values in rates.items()}
    ratios = {
        "pool_vs_socketpairs": medians["pool"] / medians["socketpairs"],
        "pool_vs_async_vector_env": medians["pool"] / medians["AsyncVectorEnv"],
    }
    table = Table()
    for heading in ("", "steps/s", "pool is"):
        table.add_column(heading, justify="right")
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.0f}", f"{medians['pool'] / rate:.2f} x")
    console = Console()
    console.print(f"{count} sessions, trusted")
    console.print(table)
    console.print(f"open: {1e3 * median(open_s):.1f} ms (median, one after another)")
    if options.json:
        numbers = {"steps_per_s": medians, "open_ms": 1e3 * median(open_s), "ratios": ratios}
        sys.stdout.write(json.dumps(numbers) + "\n")
    return 0


async def _pool_rate(count: int, steps: int, open_s: list[float]) -> float:
    """Steps per second of `count` sessions; appends how long each took to open."""
    limits = EnvPoolSection(max_sessions=count)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await EnvPool.start({"basics": POOL}, limits=limits))
        version = pool.versions()["basics"]
        task = Task(pool="basics", pool_version=version, env="sum_list", config=CONFIG, seed=0)
        sessions = []
        for _ in range(count):
            started = time.perf_counter()
            sessions.append(await stack.enter_async_context(await pool.open(task)))
            open_s.append(time.perf_counter() - started)
        return await _rate([lambda session=s: session.step(ACTION) for s in sessions], steps)


def _vector_rate(count: int, steps: int) -> float:
    """Steps per second of gymnasium's vector environment with `count` processes."""
    envs = AsyncVectorEnv([SumList] * count, shared_memory=False)
    try:
        envs.reset(options=CONFIG)
        actions = (ACTION,) * count
        envs.step(actions)
        started = time.perf_counter()
        for _ in range(steps):
            envs.step(actions)
        return count * steps / (time.perf_counter() - started)
    finally:
        envs.close()


def _echo_rate(count: int, steps: int) -> float:
    """Round trips per second over `count` socketpairs to processes that echo."""
    fork = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        ours = []
        for _ in range(count):
            near, far = socket.socketpair()
            stack.callback(near.close)
            process = fork.Process(target=_echo, args=(far,), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            far.close()
            near.setblocking(False)
            ours.append(near)

        async def measure() -> float:
            return await _rate([lambda near=n: _round_trip(near) for n in ours], steps)

        return asyncio.run(measure())


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(4096):
        connection.sendall(data)


async def _round_trip(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, MESSAGE)
    await loop.sock_recv(connection, 4096)


async def _rate(calls: list[Callable[[], Awaitable[object]]], steps: int) -> float:
    """Calls per second when each of `calls` is made `steps` times in its own task."""

    async def repeat(call: Callable[[], Awaitable[object]], times: int) -> None:
        for _ in range(times):
            await call()

    for call in calls:
        await call()
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for index, call in enumerate(calls):
            group.create_task(repeat(call, steps), name=f"session {index}")
    return len(calls) * steps / (time.perf_counter() - started)
