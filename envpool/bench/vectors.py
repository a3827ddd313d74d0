"""The vector environments of gymnasium, which step all their environments in lock step."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from envpool.bench.system import ACTION, CONFIG, step_together
from envpool.bench.variants import pool
from envpool.env import ToolEnv


class Vector:
    """A vector environment after its reset, in which environment number n has seed n."""

    def __init__(self, envs: VectorEnv, pids: Sequence[int]) -> None:
        self.pids = pids
        self._step = partial(envs.step, (ACTION,) * envs.num_envs)
        self._num_envs = envs.num_envs
        envs.reset(seed=0, options=CONFIG)

    def warm_up(self) -> None:
        self._step()

    def load(self, seconds: float, latencies_s: list[float]) -> int:
        return self._num_envs * step_together(self._step, seconds, latencies_s)


@contextmanager
def sync_vector(env: str, size: int) -> Iterator[Vector]:
    """All environments in this process: what stepping costs without any process."""
    with closing(SyncVectorEnv(_makers(env, size))) as envs:
        yield Vector(envs, [])


@contextmanager
def async_vector(env: str, size: int) -> Iterator[Vector]:
    """A process for each environment."""
    # Text has no shared memory worth having: 64 ki characters each, copied at every step.
    with closing(AsyncVectorEnv(_makers(env, size), shared_memory=False)) as envs:
        yield Vector(envs, [process.pid or 0 for process in envs.processes])


def _makers(env: str, size: int) -> list[type[ToolEnv]]:
    return [pool[env]] * size
