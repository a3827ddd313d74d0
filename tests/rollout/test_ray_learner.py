import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from rollout.ray_learner import RankError, together


async def answer(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


async def never() -> None:
    await asyncio.Event().wait()


class DistBackendError(RuntimeError):
    """As torch calls what it says of other ranks."""


def of_task(cause: Exception) -> RayTaskError:
    """As Ray hands on what was raised in another process."""
    error = RayTaskError("train", f"{type(cause).__name__}: {cause}", cause)
    return error.as_instanceof_cause()


LOST = of_task(RuntimeError("Connection closed by peer"))


async def test_all_ranks_answer() -> None:
    assert await together([answer(1), answer(2)]) == [1, 2]


async def test_a_dead_rank_is_named_though_others_fail_first() -> None:
    async def later() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        raise ActorDiedError

    with pytest.raises(RankError, match=r"rank 1 of the learner died \(see logs/learner-1\.log\)"):
        await together([answer(LOST), later(), never()])


async def test_what_a_rank_found_out_itself_is_said_rather_than_what_it_did_to_others() -> None:
    own = of_task(MemoryError("no room"))
    with pytest.raises(RankError, match=r"rank 2 of the learner failed: (?s:.*)no room"):
        await together([answer(LOST), answer(of_task(DistBackendError("lost"))), answer(own)])
    # What every rank raises is the first one's to say, as it is of one alone.
    with pytest.raises(MemoryError, match="no room"):
        await together([answer(own), answer(own)])


async def test_a_rank_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.ray_learner._LATER_S", 0.0)
    with pytest.raises(RankError, match=r"rank 1 of the learner does not answer; rank 0 waited"):
        await together([answer(LOST), never()])


async def test_nobody_is_waited_for_after_a_cancellation() -> None:
    waiting = asyncio.create_task(together([never(), never()]))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1
