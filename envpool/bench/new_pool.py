"""How soon code that did not exist a moment ago answers a tool call."""

import asyncio
import tempfile
import time
from pathlib import Path

from configs.schema import EnvPoolSection, PoolSection
from envpool.bench.ours import TIMEOUT_S
from envpool.bench.system import ACTION, CONFIG, runner
from envpool.pool import EnvPool
from envpool.task import Task

SOURCE = '''\
"""Pool number {number}, which nobody has seen."""

import msgspec

from envpool.env import ToolEnv, at, tool


class Hidden(msgspec.Struct):
    numbers: list[int]


class Unseen(ToolEnv):
    """Answer: the sum."""

    Config = Hidden
    Answer = int

    @classmethod
    def sample(cls, rng, level):
        return {{"numbers": [rng.randint(0, 9) for _ in range(rng.randint(3, 5))]}}

    def setup(self, config):
        self._numbers = config.numbers

    def statement(self):
        return f"What is the sum of the {{len(self._numbers)}} numbers?"

    def reference(self):
        return sum(self._numbers)

    @tool
    def get(self, index: int) -> int:
        """Get the number at an index.

        Args:
            index: 0 for the first.
        """
        return at(self._numbers, index)
'''


def new_pool_latencies(count: int) -> list[float]:
    """Seconds from a source text to the first result of one of its tools, sandbox on, `count` times.

    The pools are plugged into an env pool that serves others already, as in a run that goes on.
    """
    with tempfile.TemporaryDirectory() as folder, runner() as loop:
        return loop.run(_measure(Path(folder), count))


async def _measure(folder: Path, count: int) -> list[float]:
    limits = EnvPoolSection(start_timeout_s=TIMEOUT_S, step_timeout_s=TIMEOUT_S)
    served = {"served": PoolSection(source="envpool.envs:basics")}
    found: list[float] = []
    async with await EnvPool.start(served, limits=limits) as pool:
        for number in range(count):
            path = folder / f"unseen{number}.py"
            began = time.perf_counter()
            await asyncio.to_thread(path.write_text, SOURCE.format(number=number))
            key = (await pool.plug("unseen", PoolSection(source=str(path)))).key
            task = Task(
                pool=key.name, pool_version=key.version, env="unseen", config=CONFIG, seed=0
            )
            async with pool.session(task) as session:
                await session.step(ACTION)
                found.append(time.perf_counter() - began)
            await pool.retire(key)
    return found
