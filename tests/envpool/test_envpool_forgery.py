"""What a session writes straight to its socket: its own result is all it can forge."""

import ast
import os
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import envpool
from configs.schema import EnvPoolSection, PoolSection
from envpool import sandbox
from envpool.pool import EnvFault, EnvPool, Outcome, Session
from envpool.task import Task
from tests.envpool.calls import call, task

LIMITS = EnvPoolSection(step_timeout_s=3.0, max_sessions=16, memory_mb=512)
UNTRUSTED = PoolSection(source="hostile_envs:pool")

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

# The first call is request 2, as the start was request 1.
PRELUDE = """
import os, pickle, stat, threading, time
import envpool.frames as f
def write(data):
    for fd in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, data)
        except OSError:
            pass
def body(data): return len(data).to_bytes(4, "big") + data
def stepped(id, reward=1.0):
    return f.pack(f.Stepped(id=id, observation="forged", reward=reward, terminated=True,
                            truncated=False, is_bad_call=False))
"""
FORGED = {
    "another id": ("write(stepped(99))", Outcome.ENV_ERROR),
    "an id from before": ("write(stepped(1))", Outcome.ENV_ERROR),
    "another type": ("write(f.pack(f.Ready(id=2, prompt='', tools=[])))", Outcome.ENV_ERROR),
    "a type of the zygote": ("write(body(f.pack_control(f.Born(id=2))))", Outcome.ENV_ERROR),
    "a request": ("write(f.pack(f.Step(id=2, action='')))", Outcome.ENV_ERROR),
    "no number as the reward": (
        "write(stepped(2, float('nan')))", Outcome.GRADER_ERROR,
    ),
    "endless reward": ("write(stepped(2, float('-inf')))", Outcome.GRADER_ERROR),
    "text as the reward": ("write(stepped(2, 'one'))", Outcome.ENV_ERROR),
    "several at once": ("write(stepped(2) + stepped(3) + stepped(4))", Outcome.ENV_ERROR),
    "its result twice": ("write(stepped(2))", Outcome.ENV_ERROR),
    "before it was asked": (
        "threading.Thread(target=lambda: [time.sleep(.05), write(stepped(3))]).start()",
        Outcome.ENV_ERROR,
    ),
    "a flood": (
        "threading.Thread(target=lambda: [write(stepped(3)) for _ in iter(int, 1)]).start()",
        Outcome.ENV_ERROR,
    ),
    "a fault that is ours to tell": (
        "write(f.pack(f.Failed(id=2, outcome=f.Outcome.CANCELLED, error='')))", Outcome.ENV_ERROR,
    ),
    "a success as a fault": (
        "write(f.pack(f.Failed(id=2, outcome=f.Outcome.OK, error='')))", Outcome.ENV_ERROR,
    ),
    "half a frame": ("write((20).to_bytes(4, 'big') + b'x')", Outcome.ENV_ERROR),
    "a length beyond all": ("write((2**32 - 1).to_bytes(4, 'big'))", Outcome.ENV_ERROR),
    "an empty frame": ("write(bytes(4))", Outcome.ENV_ERROR),
    "garbage": ("write(body(os.urandom(100)))", Outcome.ENV_ERROR),
    "no text": ("write(body(stepped(2)[4:].replace(b'forged', bytes([255] * 6))))", Outcome.ENV_ERROR),
    "depth": ("write(body(bytes([0x91]) * 100_000))", Outcome.ENV_ERROR),
    "depth in a field": (
        "write(body(stepped(2)[4:].replace(b'\\x87', b'\\x88', 1) + b'\\xa1x' + bytes([0x91]) * 100_000))",
        Outcome.ENV_ERROR,
    ),
    "a pickle": (
        "class Surprise:\n    def __reduce__(self):\n"
        "        return exec, (\"import os; os.environ['MILLRACE_SURPRISE'] = 'yes'\",)\n"
        "write(body(pickle.dumps(Surprise())))",
        Outcome.ENV_ERROR,
    ),
}  # fmt: skip


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    sections = {"hostile": UNTRUSTED, "other": UNTRUSTED}
    async with await EnvPool.start(sections, limits=LIMITS) as pool:
        yield pool


async def run(session: Session, code: str) -> str:
    return await call(session, "run", code=PRELUDE + textwrap.dedent(code))


async def until_it_fails(session: Session, code: str) -> None:
    await run(session, code)
    for _ in range(10_000):  # the frame may come late
        await call(session, "count")


@pytest.mark.parametrize("what", FORGED)
async def test_a_session_forges_nothing_but_its_own_result(pool: EnvPool, what: str) -> None:
    code, outcome = FORGED[what]
    version = pool.versions()["other"]
    elsewhere = Task(pool="other", pool_version=version, env="hostile", config={}, seed=3)
    async with await pool.open(task(pool)) as neighbour, await pool.open(elsewhere) as other:
        async with await pool.open(task(pool)) as session:
            with pytest.raises(EnvFault) as caught:
                await until_it_fails(session, code)
            assert caught.value.outcome is outcome
        assert await call(neighbour, "count") == "1"
        assert await call(other, "count") == "1"
    async with await pool.open(task(pool)) as session:
        assert await call(session, "count") == "1"
    assert "MILLRACE_SURPRISE" not in os.environ


async def test_a_forged_fault_is_cut(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        code = "write(f.pack(f.Failed(id=2, outcome=f.Outcome.ENV_ERROR, error='x' * 10**7)))"
        with pytest.raises(EnvFault) as caught:
            await run(session, code)
        assert len(caught.value.message) < 10_000


def test_nothing_unpickles() -> None:
    """What processes say to each other is data."""
    forbidden = {"pickle", "cloudpickle", "marshal", "shelve", "multiprocessing", "dill", "joblib"}
    for path in Path(envpool.__file__ or "").parent.rglob("*.py"):
        # One measures others beside it; one keeps its own state so, and no byte of that leaves its process.
        if "bench" in path.parts or path.name == "stepwise.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""}
            else:
                continue
            assert not forbidden & {name.partition(".")[0] for name in names}, path
