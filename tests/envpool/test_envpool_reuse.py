"""Processes that serve several sessions, one after another."""

import math
import sys
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest

from configs.schema import EnvPoolSection, PoolSection
from envpool.env import ToolEnv, call_text
from envpool.frames import Failed, Ready, Start, Step, Stepped, decode_reply
from envpool.pool import EnvFault, EnvPool, Outcome
from envpool.worker import Session as WorkerSession
from tests.envpool.calls import task
from tests.envpool.hostile_envs import pool as hostile_pool

SOURCE = "hostile_envs:pool"


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    section = PoolSection(source=SOURCE, trusted=True, sessions_per_process=2)
    limits = EnvPoolSection(step_timeout_s=1.0, start_timeout_s=20.0, max_sessions=2)
    async with await EnvPool.start({"hostile": section}, limits=limits) as pool:
        yield pool


async def test_a_process_serves_its_number_of_sessions_then_ends(pool: EnvPool) -> None:
    pids = []
    for _ in range(5):
        async with await pool.open(task(pool)) as session:
            await session.step(call_text("done", {"answer": 1}))
            pids.append(session.pid)
    assert pids[0] == pids[1] and pids[2] == pids[3]
    assert len({pids[0], pids[2], pids[4]}) == 3


async def test_live_sessions_never_share_a_process(pool: EnvPool) -> None:
    async with await pool.open(task(pool)):
        pass
    async with await pool.open(task(pool)) as one, await pool.open(task(pool)) as other:
        assert one.pid != other.pid


async def test_a_session_after_another_starts_from_nothing(pool: EnvPool) -> None:
    answers = []
    for _ in range(2):
        async with await pool.open(task(pool)) as session:
            result = await session.step(call_text("done", {"answer": 1}))
            answers.append((session.prompt, result))
    assert answers[0] == answers[1]
    assert answers[0][1].reward == 1.0


async def test_a_process_that_failed_is_not_used_again(pool: EnvPool) -> None:
    session = await pool.open(task(pool))
    with pytest.raises(EnvFault) as caught:
        await session.step(call_text("done", {"answer": 13}))
    assert caught.value.outcome is Outcome.GRADER_ERROR
    await session.close()
    async with await pool.open(task(pool)) as other:
        assert other.pid != session.pid


async def test_a_start_that_hangs_in_a_used_process_frees_its_slot() -> None:
    section = PoolSection(source=SOURCE, trusted=True, sessions_per_process=9)
    limits = EnvPoolSection(step_timeout_s=1.0, start_timeout_s=1.0, max_sessions=1)
    async with await EnvPool.start({"hostile": section}, limits=limits) as pool:
        async with await pool.open(task(pool)) as first:
            pass
        with pytest.raises(EnvFault) as caught:
            await pool.open(task(pool, hangs=True))
        assert caught.value.outcome is Outcome.TIMEOUT
        async with await pool.open(task(pool)) as last:
            assert last.pid != first.pid


async def test_a_closed_session_takes_no_step_in_a_process_that_others_use(pool: EnvPool) -> None:
    session = await pool.open(task(pool))
    await session.close()
    await session.close()
    with pytest.raises(EnvFault, match="closed"):
        await session.step(call_text("done", {"answer": 1}))
    async with await pool.open(task(pool)) as other:
        assert (await other.step(call_text("done", {"answer": 1}))).reward == 1.0


def test_a_new_start_forgets_the_replies_before() -> None:
    session = WorkerSession(hostile_pool)
    start = Start(id=1, env="hostile", config={}, seed=0)
    step = Step(id=2, action=call_text("done", {"answer": 1}))
    first = [session.answer(start), session.answer(step)]
    assert session.answer(step) is first[1]
    session.answer(msgspec.structs.replace(start, id=3))
    reply = decode_reply(session.answer(msgspec.structs.replace(step, id=4))[4:])
    assert isinstance(reply, Stepped) and reply.reward == 1.0
    session.close()


def test_untrusted_code_gets_a_process_for_each_session() -> None:
    with pytest.raises(ValueError, match="sessions_per_process=2"):
        PoolSection(source=SOURCE, sessions_per_process=2)


class Rude(ToolEnv):
    """Answer: 1. Its end exits the process; a wrong answer is worth no number."""

    class Config(msgspec.Struct):
        pass

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {}

    def setup(self, config: Config) -> None:
        pass

    def statement(self) -> str:
        return "Answer 1."

    def reference(self) -> int:
        return 1

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, math.nan, terminated, truncated, info

    def close(self) -> None:
        sys.exit(3)


def test_the_end_of_one_session_is_not_the_fault_of_the_next() -> None:
    session = WorkerSession({"rude": Rude})
    for number in (1, 2):
        reply = decode_reply(session.answer(Start(id=number, env="rude", config={}, seed=0))[4:])
        assert isinstance(reply, Ready), reply


def test_a_reward_that_is_no_number_is_a_grader_error() -> None:
    session = WorkerSession({"rude": Rude})
    session.answer(Start(id=1, env="rude", config={}, seed=0))
    reply = decode_reply(session.answer(Step(id=2, action=call_text("done", {"answer": 1})))[4:])
    assert isinstance(reply, Failed) and reply.outcome is Outcome.GRADER_ERROR
