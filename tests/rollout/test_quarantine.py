"""What keeps failing is not drawn again: which faults count, what is barred, and for how long."""

import asyncio
import logging
from pathlib import Path

import msgspec
import pytest

from envpool.frames import Outcome
from envpool.task import PoolKey, Task
from rollout import audit, snapshot
from rollout.buffer import Group
from rollout.curriculum import NothingToDrawError
from rollout.quarantine import Barred, Quarantine, tool_of
from rollout.supervise import root_cause
from rollout.types import Grant, Rollout, StopReason
from tests.coordinating import make_bench, playing, until, when
from tests.fakes import FakeActor, alternating, make_rollout, make_task, make_turn

TASK = make_task(number=1)
KEY = PoolKey("basics", "v")
LONG = ("learner.steps=100000", "checkpoint.every=0", "rollout.group_size=2")


def make() -> Quarantine:
    return Quarantine(note=lambda event: None, clock=lambda: 0.0)


def fault(
    stop: StopReason = StopReason.ENV_ERROR, *, attempt: int = 0, task: Task = TASK
) -> Rollout:
    rollout = make_rollout(stop=stop, attempt=attempt)
    return msgspec.structs.replace(rollout, task_id=task.id, error="Traceback\nKeyError: 'x'")


def group(group_id: str, *rollouts: Rollout, task: Task = TASK) -> Group:
    return Group(id=group_id, task=task, size=2, attempt=0, done=dict(enumerate(rollouts)))


@pytest.mark.parametrize(
    ("attempts", "is_barred"), [((0, 0, 0), False), ((0, 1), False), ((0, 0, 1), True)]
)
def test_a_task_is_barred_for_three_faults_one_after_a_retry(
    attempts: tuple[int, ...], is_barred: bool, caplog: pytest.LogCaptureFixture
) -> None:
    quarantine = make()
    for attempt in attempts:
        quarantine.note(fault(attempt=attempt))
    assert quarantine.bars(TASK) is is_barred
    assert not quarantine.bars(make_task(number=2))
    # Another version of the pool is another task.
    assert not quarantine.bars(make_task(pool_version="w", number=1))
    assert ("KeyError: 'x'" in caplog.text) is is_barred


@pytest.mark.parametrize(
    ("stop", "fault_of", "is_barred"),
    [
        (StopReason.GRADER_ERROR, Outcome.GRADER_ERROR, True),
        (StopReason.TIMEOUT, Outcome.TIMEOUT, True),
        (StopReason.TIMEOUT, Outcome.OK, False),  # the rollout's own deadline
        (StopReason.ENGINE_ERROR, Outcome.OK, False),
        (StopReason.ENV_ERROR, Outcome.CANCELLED, False),
    ],
)
def test_only_faults_of_the_environment_count(
    stop: StopReason, fault_of: Outcome, is_barred: bool
) -> None:
    quarantine = make()
    for attempt in (0, 1, 1):
        quarantine.note(msgspec.structs.replace(fault(stop, attempt=attempt), fault=fault_of))
    assert quarantine.bars(TASK) is is_barred


def test_an_environment_is_barred_for_three_groups_in_a_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quarantine = make()
    broken = fault(attempt=1)
    for number in range(2):
        quarantine.note_group(group(f"g{number}", broken, broken))
    # One verdict shows that it can be played.
    quarantine.note_group(group("g2", broken, make_rollout(reward=0.0)))
    for number in range(3, 5):
        quarantine.note_group(group(f"g{number}", broken, broken))
    assert not quarantine.bars_env(KEY, "sum_list")
    quarantine.note_group(group("g5", broken, broken))
    assert quarantine.bars_env(KEY, "sum_list") and quarantine.bars(TASK)
    assert not quarantine.bars_env(KEY, "find_max")
    (record,) = caplog.records
    for word in ("basics", "sum_list", TASK.id, "KeyError: 'x'", "pool lift basics"):
        assert word in record.getMessage()


def test_what_is_lifted_counts_from_the_beginning() -> None:
    quarantine = make()
    for attempt in (0, 0, 1):
        quarantine.note(fault(attempt=attempt))
    assert quarantine.lift("others") == 0 and quarantine.bars(TASK)
    assert quarantine.lift("basics") == 1 and not quarantine.bars(TASK)
    for attempt in (0, 1):
        quarantine.note(fault(attempt=attempt))
    assert not quarantine.bars(TASK)


def test_faults_are_counted_by_tool_those_survived_too() -> None:
    quarantine = make()
    survived = msgspec.structs.replace(
        make_turn(), action='{"name": "length", "arguments": {}}', outcome=Outcome.TIMEOUT
    )
    quarantine.note(msgspec.structs.replace(make_rollout(), turns=[make_turn(), survived]))
    for _ in range(2):
        quarantine.note(fault())
    found = {one.tool: one.count for one in quarantine.tool_faults(KEY)}
    assert found == {"get": 2, "length": 1}
    assert tool_of("hello") == tool_of("[]") == "(no call)"


def breaks(*envs: str) -> FakeActor:
    """Every rollout of these environments faults."""

    def verdict(grant: Grant, member: int) -> float | StopReason:
        is_broken = grant.task.env in envs
        return StopReason.ENV_ERROR if is_broken else alternating(grant, member)

    return FakeActor(verdict=verdict)


async def test_a_broken_environment_is_drawn_no_more_until_it_is_lifted(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG, actors=[breaks("sum_list")])
    coordinator, actor = bench.coordinator, bench.actors[0]
    async with playing(bench):
        await when(lambda: bool(coordinator.desk.pools()[0].quarantine))
        await until(bench, step=coordinator.steps_done + 10)  # what was granted before has ended
        info = coordinator.desk.pools()[0]
        assert {barred.env for barred in info.quarantine} == {"sum_list"}
        assert [(one.env, one.tool) for one in info.tool_faults] == [("sum_list", "get")]
        granted = len(actor.granted)
        await until(bench, step=coordinator.steps_done + 30)
        assert "sum_list" not in {grant.task.env for grant in actor.granted[granted:]}
        actor._verdict = alternating
        assert not coordinator.desk.lift("basics").quarantine
        granted = len(actor.granted)
        await when(lambda: "sum_list" in {grant.task.env for grant in actor.granted[granted:]})
        saved = await coordinator.desk.checkpoint()
        assert (await asyncio.to_thread(snapshot.read, Path(saved.path))).quarantine == []
    live = coordinator.ledger.counts()
    assert await asyncio.to_thread(audit.recompute, tmp_path) == live
    lines = (await asyncio.to_thread((tmp_path / "metrics.jsonl").read_bytes)).splitlines()
    values = [msgspec.json.decode(line) for line in lines]
    assert any(line.get("pool/basics/tool_faults", 0) > 0 for line in values)
    assert {"pool/basics/groups", "pool/basics/faults", "pool/basics/reward_mean"} <= set(values[0])


async def test_a_run_with_nothing_left_to_draw_says_so_and_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await make_bench(tmp_path, *LONG)
    envs = bench.coordinator._pools.live("basics").source.train
    bench = await make_bench(tmp_path / "run", *LONG, actors=[breaks(*envs)])
    with caplog.at_level(logging.ERROR), pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    error = root_cause(raised.value)
    assert isinstance(error, NothingToDrawError) and "all environments of basics" in str(error)
    assert "pool basics is left out" in caplog.text
    live = bench.coordinator.ledger.counts()
    assert await asyncio.to_thread(audit.recompute, tmp_path / "run") == live


async def test_an_environment_whose_every_task_is_barred_is_barred_itself(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    curriculum, quarantine = bench.coordinator._curriculum, bench.coordinator._quarantine
    key = bench.coordinator._pools.live("basics").key
    quarantine.bars = lambda task: task.env == "find_max"  # type: ignore[method-assign]
    drawn = [curriculum.next().task.env for _ in range(60)]
    assert "find_max" not in drawn and quarantine.bars_env(key, "find_max")
    await asyncio.to_thread(bench.files.close)


async def test_a_checkpoint_keeps_what_is_barred(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG, actors=[breaks("sum_list")])
    async with playing(bench):
        await when(lambda: bool(bench.coordinator.desk.pools()[0].quarantine))
        saved = await bench.coordinator.desk.checkpoint()
    kept = (await asyncio.to_thread(snapshot.read, Path(saved.path))).quarantine
    again = make()
    again.restore(kept)
    assert again.barred and all(isinstance(one, Barred) for one in kept)
    key = bench.coordinator._pools.live("basics").key
    assert set(again.barred_of(key)) == set(kept)
