"""How soon code that did not exist a moment ago answers a tool call."""

import sys
import tempfile
import time
from pathlib import Path

from configs.schema import EnvPoolSection, PoolSection
from envpool.bench.ours import TIMEOUT_S
from envpool.bench.system import ACTION, CONFIG, runner
from envpool.pool import EnvPool
from envpool.task import Task

SOURCE = '''\
"""A pool that nobody has seen."""

from envpool.envs.sum_list import SumList


class Unseen(SumList):
    """Answer: the sum."""


pool = {"unseen": Unseen}
'''
MODULE = "millrace_unseen_pool"


def new_pool_latency() -> float:
    """Seconds from a source text to the first result of one of its tools, sandbox on.

    A pool is started for it alone, which starts an interpreter.
    """
    with tempfile.TemporaryDirectory() as folder, runner() as loop:
        sys.path.insert(0, folder)
        try:
            began = time.perf_counter()
            (Path(folder) / f"{MODULE}.py").write_text(SOURCE)
            loop.run(_step_once())
            return time.perf_counter() - began
        finally:
            sys.path.remove(folder)


async def _step_once() -> None:
    limits = EnvPoolSection(max_sessions=1, start_timeout_s=TIMEOUT_S)
    section = PoolSection(source=f"{MODULE}:pool")
    async with await EnvPool.start({"unseen": section}, limits=limits) as pool:
        version = pool.versions()["unseen"]
        task = Task(pool="unseen", pool_version=version, env="unseen", config=CONFIG, seed=0)
        async with await pool.open(task) as session:
            await session.step(ACTION)
