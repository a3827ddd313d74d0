"""Sessions that share a process: what one does to it costs the others nothing but time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from configs.schema import EnvPoolSection, PoolSection
from envpool.env import call_text
from envpool.pool import EnvFault, EnvPool, Outcome, Session
from envpool.spawn import reap
from tests.envpool.calls import call, task

LIMITS = EnvPoolSection(step_timeout_s=2.0, max_sessions=8)
SECTION = PoolSection(source="hostile_envs:pool", trusted=True, sessions_per_worker=3)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start({"hostile": SECTION}, limits=LIMITS) as pool:
        yield pool


@pytest.fixture
async def sessions(pool: EnvPool) -> AsyncIterator[list[Session]]:
    """Three in one process, which have counted to 1, 2 and 3."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(await pool.open(task(pool))) for _ in range(3)]
        for index, session in enumerate(opened):
            for number in range(index + 1):
                assert await call(session, "count") == str(number + 1)
        yield opened


async def count_all(sessions: list[Session]) -> list[str]:
    async with asyncio.TaskGroup() as group:
        counting = [group.create_task(call(session, "count")) for session in sessions]
    return [one.result() for one in counting]


async def test_sessions_share_a_process_until_it_is_full(
    pool: EnvPool, sessions: list[Session]
) -> None:
    assert len({session.pid for session in sessions}) == 1
    async with await pool.open(task(pool)) as fourth:
        assert fourth.pid != sessions[0].pid
        assert sorted(pool.session_pids()) == sorted({fourth.pid, sessions[0].pid})
        assert await count_all([*sessions, fourth]) == ["2", "3", "4", "1"]


async def test_a_closed_session_leaves_the_others(sessions: list[Session]) -> None:
    await sessions[1].close()
    assert await count_all([sessions[0], sessions[2]]) == ["2", "4"]
    with pytest.raises(EnvFault) as caught:
        await call(sessions[1], "count")
    assert caught.value.outcome is Outcome.CANCELLED


async def test_a_place_serves_one_session_after_another() -> None:
    section = PoolSection(
        source="hostile_envs:pool", trusted=True, sessions_per_worker=2, sessions_per_process=2
    )
    async with await EnvPool.start({"hostile": section}, limits=LIMITS) as pool:
        pids = []
        for _ in range(6):
            async with await pool.open(task(pool)) as session:
                assert await call(session, "count") == "1"
                pids.append(session.pid)
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [4, 2]


async def test_more_than_fit_wait_for_a_slot() -> None:
    limits = EnvPoolSection(max_sessions=2)
    async with await EnvPool.start({"hostile": SECTION}, limits=limits) as pool:
        first, second = await pool.open(task(pool)), await pool.open(task(pool))
        third = asyncio.create_task(pool.open(task(pool)))
        await asyncio.sleep(0.1)
        assert not third.done()
        await first.close()
        async with await third as session:
            assert await call(session, "count") == "1"
        await second.close()


async def test_all_go_on_when_their_process_is_killed(sessions: list[Session]) -> None:
    for expected in (["2", "3", "4"], ["3", "4", "5"]):
        for pid in {session.pid for session in sessions}:
            os.kill(pid, signal.SIGKILL)
        assert await count_all(sessions) == expected


@pytest.mark.parametrize(
    ("name", "arguments", "words", "outcome"),
    [
        ("leave", {"status": 7}, "ended the environment", Outcome.CRASHED),
        ("segfault", {}, "ended the environment", Outcome.CRASHED),
        ("hang", {}, "took too long", Outcome.TIMEOUT),
        ("exhaust", {}, "took too much memory", Outcome.OOM),
    ],
)
async def test_who_ends_the_process_is_blamed_and_nobody_else(
    sessions: list[Session], name: str, arguments: dict[str, Any], words: str, outcome: Outcome
) -> None:
    first, guilty, last = sessions
    async with asyncio.TaskGroup() as group:
        before = group.create_task(call(first, "count"))
        deadly = group.create_task(guilty.step(call_text(name, arguments)))
        after = group.create_task(call(last, "count"))
    assert deadly.result().is_bad_call
    assert deadly.result().observation == f"Error: the call {words}"
    assert (before.result(), after.result()) == ("2", "4")
    assert await count_all(sessions) == ["3", "3", "5"]
    with pytest.raises(EnvFault) as caught:
        await call(guilty, name, **arguments)
    assert caught.value.outcome is outcome
    assert await count_all([first, last]) == ["4", "6"]


async def test_a_suspect_goes_on_in_a_process_of_its_own(sessions: list[Session]) -> None:
    first, guilty, last = sessions
    await guilty.step(call_text("leave", {"status": 7}))
    await count_all([first, last])
    assert first.pid == last.pid != guilty.pid


async def test_a_step_that_is_given_up_harms_nobody(sessions: list[Session]) -> None:
    first, second, third = sessions
    code = "import time; time.sleep(0.3)"
    given_up = asyncio.create_task(call(first, "run", code=code))
    await asyncio.sleep(0.1)
    pid = second.pid
    given_up.cancel()
    assert await count_all([second, third]) == ["3", "4"]
    assert second.pid == pid
    await asyncio.gather(given_up, return_exceptions=True)


async def test_a_step_that_is_given_up_and_hangs_harms_nobody(sessions: list[Session]) -> None:
    first, second, third = sessions
    given_up = asyncio.create_task(call(first, "hang"))
    await asyncio.sleep(0.1)
    pid = second.pid
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    await reap(pid)
    assert await count_all([second, third]) == ["3", "4"]
    assert second.pid == third.pid != pid  # neither is suspected


async def test_what_an_environment_raises_is_its_own(sessions: list[Session]) -> None:
    async with asyncio.TaskGroup() as group:
        failing = group.create_task(outcome_of(sessions[0]))
        others = group.create_task(count_all(sessions[1:]))
    assert failing.result() is Outcome.ENV_ERROR
    assert others.result() == ["3", "4"]


async def outcome_of(session: Session) -> Outcome:
    try:
        await call(session, "fail")
    except EnvFault as fault:
        return fault.outcome
    return Outcome.OK


def test_untrusted_sessions_share_nothing() -> None:
    with pytest.raises(ValueError, match=r"sessions_per_worker=2 would let .* trusted=true"):
        PoolSection(source="hostile_envs:pool", sessions_per_worker=2)
