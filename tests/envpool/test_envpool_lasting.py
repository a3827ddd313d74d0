"""Sessions go on when their process dies, and show the transcript they would have had."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from configs.schema import EnvPoolSection, PoolSection
from envpool.env import call_text
from envpool.pool import EnvFault, EnvPool, Outcome, StepResult
from envpool.task import Task
from tests.envpool.calls import call, task

LIMITS = EnvPoolSection(step_timeout_s=2.0, max_sessions=400)
SECTION = PoolSection(source="hostile_envs:pool", trusted=True)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start({"hostile": SECTION}, limits=LIMITS) as pool:
        yield pool


async def test_a_killed_session_goes_on_where_it_was(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        assert [await call(session, "count") for _ in range(3)] == ["1", "2", "3"]
        for expected in ("4", "5"):
            os.kill(session.pid, signal.SIGKILL)
            assert await call(session, "count") == expected
        assert session.actions == [call_text("count", {})] * 5


async def test_a_session_survives_its_zygote(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        await call(session, "count")
        os.kill(pool.pids()["hostile"], signal.SIGKILL)
        assert await call(session, "count") == "2"


async def test_chance_is_replayed(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as one, await pool.open(task(pool)) as other:
        assert await call(one, "chance") == await call(other, "chance")
        os.kill(one.pid, signal.SIGKILL)
        assert await call(one, "chance") == await call(other, "chance")


@pytest.mark.parametrize(
    ("name", "arguments", "words", "outcome"),
    [
        ("leave", {"status": 7}, "ended the environment", Outcome.CRASHED),
        ("segfault", {}, "ended the environment", Outcome.CRASHED),
        ("hang", {}, "took too long", Outcome.TIMEOUT),
        ("exhaust", {}, "took too much memory", Outcome.OOM),
    ],
)
async def test_the_first_deadly_call_is_a_wrong_one_the_second_a_fault(
    pool: EnvPool, name: str, arguments: dict[str, Any], words: str, outcome: Outcome
) -> None:
    async with await pool.open(task(pool)) as session:
        assert await call(session, "count") == "1"
        result = await session.step(call_text(name, arguments))
        assert result == StepResult(
            observation=f"Error: the call {words}",
            reward=0.0,
            terminated=False,
            truncated=False,
            is_bad_call=True,
            outcome=outcome,
        )
        assert await call(session, "count") == "2"
        with pytest.raises(EnvFault) as caught:
            await call(session, name, **arguments)
        assert caught.value.outcome is outcome


async def test_an_environment_that_answers_differently_is_found_out(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        await call(session, "run", code="import os; out = os.getpid()")
        os.kill(session.pid, signal.SIGKILL)
        with pytest.raises(EnvFault, match="step 1 was answered differently") as caught:
            await call(session, "count")
        assert caught.value.outcome is Outcome.ENV_ERROR


async def test_what_cannot_be_replayed_ends(pool: EnvPool) -> None:
    section = PoolSection(source="hostile_envs:pool", trusted=True, is_replayable=False)
    async with (
        await EnvPool.start({"hostile": section}, limits=LIMITS) as pool,
        await pool.open(task(pool)) as session,
    ):
        os.kill(session.pid, signal.SIGKILL)
        with pytest.raises(EnvFault) as caught:
            await call(session, "count")
        assert caught.value.outcome is Outcome.CRASHED


async def test_a_closed_session_stays_closed(pool: EnvPool) -> None:
    session = await pool.open(task(pool))
    await session.close()
    with pytest.raises(EnvFault) as caught:
        await call(session, "count")
    assert caught.value.outcome is Outcome.CANCELLED


NUM_SESSIONS, NUM_ROUNDS = 300, 5


async def play(pool: EnvPool, seed: int, barrier: asyncio.Barrier | None) -> list[str]:
    """A transcript; at the barrier the sessions wait for each other, and for who disturbs them."""
    version = pool.versions()["hostile"]
    config = {"number": seed}
    one = Task(pool="hostile", pool_version=version, env="hostile", config=config, seed=seed)
    rng = random.Random(seed)
    async with await pool.open(one) as session:
        found = [session.prompt]
        for _ in range(NUM_ROUNDS):
            if barrier is not None:
                await barrier.wait()
            found += [await call(session, rng.choice(("count", "chance"))) for _ in range(3)]
    return found


async def disturb(pool: EnvPool, barrier: asyncio.Barrier) -> int:
    """Kill five sessions, then their zygote, in each round; returns how many were killed."""
    rng, killed = random.Random(0), 0
    for _ in range(NUM_ROUNDS):
        await barrier.wait()
        for pid in rng.sample(pool.session_pids(), 5):
            os.kill(pid, signal.SIGKILL)
            killed += 1
            await asyncio.sleep(0)  # the others go on with their step
        os.kill(pool.pids()["hostile"], signal.SIGKILL)
    return killed


@pytest.mark.timeout(300)
async def test_three_hundred_sessions_survive_everything() -> None:
    limits = EnvPoolSection(max_sessions=NUM_SESSIONS, step_timeout_s=60.0, start_timeout_s=60.0)
    async with await EnvPool.start({"hostile": SECTION}, limits=limits) as pool:
        async with asyncio.TaskGroup() as group:
            calm = [group.create_task(play(pool, seed, None)) for seed in range(NUM_SESSIONS)]
        barrier = asyncio.Barrier(NUM_SESSIONS + 1)
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(play(pool, seed, barrier)) for seed in range(NUM_SESSIONS)]
            killing = group.create_task(disturb(pool, barrier))
    assert killing.result() == 5 * NUM_ROUNDS
    assert [one.result() for one in others] == [one.result() for one in calm]
