"""Sessions as processes: what they answer, how they fail, and that none outlives its end."""

import asyncio
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import nursery
from envpool.env import call_text
from envpool.frames import Kill, Serve
from envpool.nursery import Nursery
from envpool.pool import EnvFault, EnvPool, Outcome, Session
from envpool.source import PoolSource
from envpool.spawn import Root
from envpool.task import Split, Task
from tests.envpool.calls import call, task

# A death is final here: how a session survives one is tested elsewhere.
HOSTILE = PoolSection(source="hostile_envs:pool", trusted=True, is_replayable=False)
BASICS = PoolSection(source="envpool.envs:basics", trusted=True)
LIMITS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=20.0, max_sessions=64, spares=0)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start({"hostile": HOSTILE}, limits=LIMITS) as pool:
        yield pool


async def fault(session: Session, name: str, /, **arguments: Any) -> EnvFault:
    with pytest.raises(EnvFault) as caught:
        await call(session, name, **arguments)
    return caught.value


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for_exits(pids: Sequence[int], timeout_s: float = 20.0) -> None:
    """Block until all processes have ended; raises TimeoutError if they do not."""
    with ExitStack() as stack:
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, fd)
            if not select.select([fd], [], [], timeout_s)[0]:
                raise TimeoutError(f"process {pid} lives on")


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


async def test_session_plays_an_episode(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        assert session.prompt == "Answer 1."
        assert session.tools[-1]["function"]["name"] == "done"
        assert await call(session, "count") == "1"
        assert (await session.step("nonsense")).is_bad_call
        result = await session.step(call_text("done", {"answer": 1}))
        assert (result.reward, result.terminated, result.truncated) == (1.0, True, False)
        assert len(session.actions) == 3


async def test_an_action_that_is_not_valid_unicode_is_a_wrong_call(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        assert (await session.step("\ud800")).is_bad_call


async def test_sessions_share_nothing(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as one, await pool.open(task(pool)) as other:
        assert one.pid != other.pid
        assert [await call(one, "count"), await call(one, "count")] == ["1", "2"]
        assert await call(other, "count") == "1"


async def test_global_generators_are_seeded_for_each_session(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as one, await pool.open(task(pool)) as other:
        assert await call(one, "chance") == await call(other, "chance")


async def test_slow_step_is_killed_and_harms_no_other() -> None:
    limits = EnvPoolSection(step_timeout_s=0.3)
    async with (
        await EnvPool.start({"hostile": HOSTILE}, limits=limits) as pool,
        await pool.open(task(pool)) as slow,
        await pool.open(task(pool)) as other,
    ):
        async with asyncio.TaskGroup() as group:
            faulted = group.create_task(fault(slow, "hang"))
            assert [await call(other, "count") for _ in range(3)] == ["1", "2", "3"]
        assert faulted.result().outcome is Outcome.TIMEOUT
        assert is_gone(slow.pid)
        assert await call(other, "count") == "4"
        assert (await fault(slow, "count")).outcome is Outcome.CRASHED


@pytest.mark.parametrize(
    ("name", "arguments", "outcome", "text"),
    [
        ("leave", {"status": 7}, Outcome.CRASHED, "exited with status 7"),
        ("segfault", {}, Outcome.CRASHED, "SIGSEGV"),
        ("fail", {}, Outcome.ENV_ERROR, "RuntimeError: broken environment"),
        ("quit", {}, Outcome.ENV_ERROR, "SystemExit"),
        ("exhaust", {}, Outcome.OOM, "MemoryError"),
        ("surrogate", {}, Outcome.ENV_ERROR, "surrogates"),
        ("say", {"length": 17 * 2**20}, Outcome.ENV_ERROR, "at most"),
        ("done", {"answer": 13}, Outcome.GRADER_ERROR, "ZeroDivisionError: unlucky"),
    ],
)
async def test_fault_is_typed_and_others_go_on(
    pool: EnvPool, name: str, arguments: dict[str, Any], outcome: Outcome, text: str
) -> None:
    async with await pool.open(task(pool)) as broken, await pool.open(task(pool)) as other:
        error = await fault(broken, name, **arguments)
        assert error.outcome is outcome
        assert text in str(error)
        assert await call(other, "count") == "1"


async def test_killed_session_is_a_crash(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        os.kill(session.pid, signal.SIGKILL)
        error = await fault(session, "count")
        assert (error.outcome, "SIGKILL" in str(error)) == (Outcome.CRASHED, True)


async def test_wrong_configuration_faults_the_open(pool: EnvPool) -> None:
    with pytest.raises(EnvFault, match="unknown field `color`"):
        await pool.open(task(pool, color="red"))


async def test_fault_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(EnvFault(Outcome.OOM, "too much")))
    assert (copy.outcome, str(copy)) == (Outcome.OOM, "oom: too much")


async def test_open_waits_for_room_and_a_hanging_start_is_killed() -> None:
    limits = EnvPoolSection(max_sessions=1, start_timeout_s=2.0, spares=0)
    async with await EnvPool.start({"hostile": HOSTILE}, limits=limits) as pool:
        first = await pool.open(task(pool))
        async with asyncio.TaskGroup() as group:
            second = group.create_task(pool.open(task(pool)))
            assert await call(first, "count") == "1"
            assert not second.done()
            await first.close()
        await second.result().close()
        with pytest.raises(EnvFault, match="start took over") as caught:
            await pool.open(task(pool, hangs=True))
        assert caught.value.outcome is Outcome.TIMEOUT
        assert not await asyncio.to_thread(children, pool.pids()["hostile"])
        async with await pool.open(task(pool)):
            # The failed start gave its room back once, not twice.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await pool.open(task(pool))


async def test_cancelled_open_and_step_leave_nothing() -> None:
    limits = EnvPoolSection(max_sessions=1, spares=0)
    async with await EnvPool.start({"hostile": HOSTILE}, limits=limits) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await pool.open(task(pool, hangs=True))
        session = await pool.open(task(pool))  # Has room only once the other process is gone.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await call(session, "hang")
        # The cancelled step killed it: a close is not needed for that.
        await asyncio.to_thread(wait_for_exits, [session.pid])
        await session.close()
        assert is_gone(session.pid)
        for delay in range(20):
            opening = asyncio.create_task(pool.open(task(pool)), name="open")
            for _ in range(delay):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                await (await opening).close()
            except asyncio.CancelledError:
                pass
        async with await pool.open(task(pool)):
            # However a start was cut short, its room came back once, not twice.
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await pool.open(task(pool))
        assert not await asyncio.to_thread(children, pool.pids()["hostile"])


async def test_close_leaves_no_process(pool: EnvPool) -> None:
    sessions = [await pool.open(task(pool)) for _ in range(4)]
    left_behind = int(await call(sessions[0], "spawn"))
    await sessions[1].close()
    assert is_gone(sessions[1].pid)
    zygote = pool.pids()["hostile"]
    await pool.close()
    for pid in (zygote, *(session.pid for session in sessions)):
        assert is_gone(pid)
    await asyncio.to_thread(wait_for_exits, [left_behind])
    for session in sessions:
        await session.close()
    with pytest.raises(EnvFault, match="closed"):
        await pool.open(task(pool))


async def test_session_takes_what_it_started_with_it(pool: EnvPool) -> None:
    session = await pool.open(task(pool))
    left_behind = int(await call(session, "spawn"))
    await session.close()
    await asyncio.to_thread(wait_for_exits, [left_behind])


async def test_zygote_that_died_is_started_again(pool: EnvPool) -> None:
    session = await pool.open(task(pool))
    zygote = pool.pids()["hostile"]
    os.kill(zygote, signal.SIGKILL)
    await asyncio.to_thread(wait_for_exits, [session.pid])
    assert (await fault(session, "count")).outcome is Outcome.CRASHED
    await session.close()
    async with await pool.open(task(pool)) as session:
        assert await call(session, "count") == "1"
    assert pool.pids()["hostile"] != zygote


async def test_zygote_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "CLOSE_GRACE_S", 0.3)
    limits = EnvPoolSection(start_timeout_s=5.0, step_timeout_s=0.3)
    async with await EnvPool.start({"hostile": HOSTILE}, limits=limits) as pool:
        session = await pool.open(task(pool))
        os.kill(pool.pids()["hostile"], signal.SIGSTOP)
        assert (await fault(session, "hang")).outcome is Outcome.TIMEOUT
        await asyncio.to_thread(wait_for_exits, [session.pid])
        await (await pool.open(task(pool))).close()


async def test_close_kills_a_zygote_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "CLOSE_GRACE_S", 0.3)
    pool = await EnvPool.start({"hostile": HOSTILE}, limits=LIMITS)
    session = await pool.open(task(pool))
    zygote = pool.pids()["hostile"]
    os.kill(zygote, signal.SIGSTOP)
    await pool.close()
    assert is_gone(zygote)
    await asyncio.to_thread(wait_for_exits, [session.pid])


async def test_orders_wait_for_a_zygote_that_is_behind() -> None:
    serve = Serve(
        name="hostile",
        section=HOSTILE,
        folder="",
        is_sandboxed=False,
        memory_bytes=2**31,
        cpu_s=60,
        max_processes=10,
        pool_memory_bytes=0,
    )
    root = Root.spawn()
    behind = await Nursery.start(root, serve, 20.0)
    try:
        os.kill(behind.pid, signal.SIGSTOP)
        for _ in range(2000):
            behind.order(Kill(id=12345))  # nobody's
        ours, theirs = socket.socketpair()
        with ours:
            child = behind.fork(theirs, lambda _: None)
            os.kill(behind.pid, signal.SIGCONT)
            async with asyncio.timeout(20):
                await child.forked.wait()
            assert child.pid > 0
    finally:
        await behind.close()
        await root.close()


async def test_a_deadline_is_that_of_its_own_step() -> None:
    limits = EnvPoolSection(step_timeout_s=1.0)
    async with (
        await EnvPool.start({"hostile": HOSTILE}, limits=limits) as pool,
        await pool.open(task(pool)) as session,
    ):
        code = "import time; time.sleep(0.6); out = 'slept'"
        assert [await call(session, "run", code=code) for _ in range(3)] == ["slept"] * 3


async def test_session_sees_no_secret_no_descriptor_no_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        async with (
            await EnvPool.start({"hostile": HOSTILE}, limits=LIMITS) as pool,
            await pool.open(task(pool)) as other,
            await pool.open(task(pool)) as session,
        ):
            assert await call(session, "variable", name="WANDB_API_KEY") == "unset"
            assert await call(session, "variable", name="PATH") != "unset"
            assert await call(session, "variable", name="PYTHONHASHSEED") == "0"
            assert await call(session, "descriptors") == await call(other, "descriptors") == "1"
            assert await call(session, "blocked") == "false"
            assert os.getsid(session.pid) != os.getsid(0)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        os.close(read_end)
        os.close(write_end)


@pytest.fixture
def source() -> PoolSource:
    return PoolSource.load("basics", BASICS)


async def test_two_hundred_sessions_at_once(source: PoolSource) -> None:
    rng = Random(0)
    tasks = [
        source.task(env_id, source.draw(env_id, rng, Split.TRAIN), seed)
        for seed in range(25)
        for env_id in source.envs
    ]

    async def win(pool: EnvPool, task: Task) -> float:
        env = source.envs[task.env]()
        env.reset(seed=task.seed, options=task.config)
        oracle = env.oracle()
        async with await pool.open(task) as session:
            assert session.pid > 0
            wanted = next(oracle)
            while not (result := await session.step(call_text(*wanted))).terminated:
                wanted = oracle.send(result.observation)
        return result.reward

    async with await EnvPool.start({"basics": BASICS}, limits=EnvPoolSection()) as pool:
        assert pool.versions() == {"basics": source.version}
        async with asyncio.TaskGroup() as group:
            games = [group.create_task(win(pool, task), name=task.id) for task in tasks]
    assert [game.result() for game in games] == [1.0] * 200


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (PoolSection(source="hostile_envs:pol", trusted=True), "did you mean pool"),
        (PoolSection(source="no_such_module:pool", trusted=True), "No module named"),
        (PoolSection(source="broken_source:pool", trusted=True), "ZeroDivisionError"),
        (PoolSection(source="threaded_source:pool", trusted=True), "1 threads"),
        (PoolSection(source="leaving_source:pool", trusted=True), "its process died"),
    ],
)
async def test_source_that_cannot_be_served_is_refused(section: PoolSection, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        await EnvPool.start({"a": section}, limits=LIMITS)


async def test_source_that_hangs_at_import_is_killed() -> None:
    limits = EnvPoolSection(start_timeout_s=1.0)
    section = PoolSection(source="hanging_source:pool", trusted=True)
    with pytest.raises(ConfigError, match=r"envpool\.start_timeout_s"):
        await EnvPool.start({"a": section}, limits=limits)


async def test_task_of_another_pool_version_or_env_is_refused(pool: EnvPool) -> None:
    good = task(pool)
    for changed, text in (
        ({"pool_version": "0" * 16}, "is served in version"),
        ({"env": "hostil"}, "did you mean hostile"),
        ({"pool": "hostil"}, "did you mean hostile"),
    ):
        fields = {"pool": good.pool, "pool_version": good.pool_version, "env": good.env, **changed}
        with pytest.raises(EnvFault, match=text):
            await pool.open(Task(config={}, seed=0, **fields))


PARENT = """
import asyncio, os, time
from configs.schema import EnvPoolSection, PoolSection
from envpool.pool import EnvPool
from envpool.task import Task

async def main():
    section = PoolSection(source="hostile_envs:pool", trusted=True)
    pool = await EnvPool.start({"hostile": section}, limits=EnvPoolSection())
    version = pool.versions()["hostile"]
    task = Task(pool="hostile", pool_version=version, env="hostile", config={}, seed=0)
    sessions = [await pool.open(task) for _ in range(3)]
    holder = os.fork()
    if holder == 0:
        time.sleep(3600)
    print(holder, *pool.pids().values(), *(session.pid for session in sessions), flush=True)
    await sessions[0].step('{"name": "hang", "arguments": {}}')

asyncio.run(main())
"""


def test_death_of_the_parent_ends_zygote_and_sessions() -> None:
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = [sys.executable, "-c", PARENT]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        # The holder keeps a copy of every socket, so that no end of file tells of the death.
        holder, *pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 4
        parent.kill()
        try:
            wait_for_exits(pids)
        finally:
            os.kill(holder, signal.SIGKILL)
