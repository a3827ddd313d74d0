"""What the coordinator writes into a checkpoint, and that all of it comes back."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from configs.load import load
from configs.schema import AlarmSection, PoolSection, RolloutSection, RunConfig
from envpool.source import PoolSource
from envpool.task import Task
from rollout import checkpoints, snapshot
from rollout.books import Books
from rollout.buffer import Ended, ReplayQueue
from rollout.curriculum import Curriculum, Draw
from rollout.files import RunFiles
from rollout.ledger import GroupState, Ledger
from rollout.lineage import Lineage
from rollout.pass_rates import Rates
from rollout.pools import Pools, PoolState, Version
from rollout.quarantine import Quarantine
from rollout.saving import Saver
from rollout.scores import score
from rollout.types import StopReason
from tests.fakes import FakeLearner, make_rollout
from tests.fakes import make_task as make_any_task
from tests.recipes import BASICS

SECTION = PoolSection(source="envpool.envs:basics", trusted=True)
VERSION = PoolSource.load("basics", SECTION).version
LINEAGE = Lineage().resumed(place=1, version=4)


def make_task(number: int = 0) -> Task:
    """A task of the pool that is served."""
    return make_any_task(pool_version=VERSION, number=number)


@dataclass
class State:
    """What belongs to a checkpoint, without a run around it."""

    ledger: Ledger
    queue: ReplayQueue
    curriculum: Curriculum
    books: Books
    files: RunFiles
    saver: Saver
    ended: list[Ended]

    def play(self, *rewards: float, attempt: int = 0, pool_version: str = VERSION) -> str:
        """A group of two, of which `rewards` are known."""
        task = make_any_task(pool_version=pool_version, number=self.queue.next_id)
        group = self.queue.create(task, attempt=attempt)
        self.queue.start(group, actor="a", version=4)
        for member, reward in enumerate(rewards):
            self.queue.finish(make_rollout(group.id, member, reward=reward, versions=(4,)))
        return group.id


def make_state(run_dir: Path, config: RunConfig, lineage: Lineage) -> State:
    (section,) = config.pools.values()
    source = PoolSource.load("basics", section)
    files = RunFiles(run_dir)
    ended: list[Ended] = []
    ledger = Ledger(sink=files.event, clock=time.monotonic)
    queue = ReplayQueue(
        ledger=ledger,
        groups_per_step=2,
        max_lag=3,
        weights_every=1,
        group_size=2,
        min_members=2,
        on_scored=lambda group, has_signal: None,
        on_end=ended.append,
        lineage=lineage,
    )
    curriculum = Curriculum({}, RolloutSection(draw="signal"), seed=0)
    pools = Pools(
        [Version(source=source, section=section, state=PoolState.LIVE)],
        run_dir=run_dir,
        actors={},
        evaluator=None,
        curriculum=curriculum,
        queue=queue,
        note=files.event,
        evaluate=lambda _name, _tasks: set(),
        seed=0,
        clock=time.monotonic,
    )
    books = Books(files, clock=time.monotonic, alarm=AlarmSection())
    saver = Saver(
        run_dir=run_dir,
        config=config,
        pools=pools,
        ledger=ledger,
        queue=queue,
        curriculum=curriculum,
        quarantine=Quarantine(note=files.event, clock=time.monotonic),
        books=books,
    )
    return State(ledger, queue, curriculum, books, files, saver, ended)


async def test_all_that_a_checkpoint_holds_comes_back(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, [BASICS, "learner.steps=9"])
    old = await asyncio.to_thread(make_state, tmp_path, config, LINEAGE)
    old.queue.resume(next_id=7, steps_done=1)
    for _ in range(3):
        old.curriculum.next()
    old.curriculum.note(make_task(), [0.0, 0.0])
    old.curriculum.requeue(Draw(task=make_task(number=99), attempt=2))
    old.books.lag_max = 3
    old.play(1.0, 1.0)
    old.ledger.count_rollouts(GroupState.FILTERED, 2)
    queued = [old.play(0.0, 1.0), old.play(1.0, 0.0)]
    half = old.play(1.0, attempt=1)
    fault = make_rollout(half, 1, stop=StopReason.TIMEOUT)
    assert old.queue.finish(fault)
    before = {"fresh": {"sampled": score([make_rollout("t", reward=1.0)])}}
    part = await old.saver.begin(FakeLearner(), 1)
    await old.saver.commit(part, step=1, version=4, before=before, wall_s=12.5)
    await asyncio.to_thread(old.files.close)

    newest = await asyncio.to_thread(checkpoints.latest, tmp_path)
    assert newest is not None
    state = await asyncio.to_thread(snapshot.read, newest)
    assert (state.step, state.version, state.lineage) == (1, 4, LINEAGE)
    assert (state.before, state.wall_s, state.place) == (before, 12.5, 1)
    new = await asyncio.to_thread(make_state, tmp_path, config, state.lineage)
    new.saver.restore(state)
    await asyncio.to_thread(new.files.close)
    assert new.curriculum.cursor == old.curriculum.cursor
    assert new.curriculum.rates == old.curriculum.rates != Rates()
    assert new.curriculum.rates.pools[0].envs["sum_list"].rate == 0.0
    assert new.books.lag_max == 3
    assert [record.id for record in new.queue.records(GroupState.QUEUED)] == queued
    assert new.queue.records(GroupState.QUEUED) == old.queue.records(GroupState.QUEUED)
    assert [one.group.id for one in new.ended] == [half]
    assert new.ended[0].group.rollouts == [make_rollout(half, 0, versions=(4,)), fault]
    assert new.ledger.states() == old.ledger.states() | {"running": 0, "cancelled": 1}
    assert new.ledger.counts().rollouts == old.ledger.counts().rollouts
    # What was being played comes first, each with the attempts it had; then what waited before.
    drawn = [(draw.task.config, draw.attempt) for draw in new.curriculum.requeued]
    assert drawn == [({"number": 10}, 1), ({"number": 99}, 2)]
    assert new.queue.create(make_task()).id == "g000011"


async def test_what_belongs_to_a_pool_that_is_gone_is_trained_on_and_not_drawn(
    tmp_path: Path,
) -> None:
    config = await asyncio.to_thread(load, [BASICS, "learner.steps=9"])
    old = await asyncio.to_thread(make_state, tmp_path, config, LINEAGE)
    old.queue.resume(next_id=7, steps_done=1)
    queued = old.play(0.0, 1.0, pool_version="gone")
    half = old.play(1.0, pool_version="gone")
    old.curriculum.requeue(Draw(task=make_any_task(pool_version="gone", number=5), attempt=1))
    part = await old.saver.begin(FakeLearner(), 1)
    await old.saver.commit(part, step=1, version=4, before={}, wall_s=1.0)
    await asyncio.to_thread(old.files.close)

    new = await asyncio.to_thread(make_state, tmp_path, config, LINEAGE)
    new.saver.restore(await asyncio.to_thread(snapshot.read, part))
    await asyncio.to_thread(new.files.close)
    assert [record.id for record in new.queue.records(GroupState.QUEUED)] == [queued]
    assert [one.group.id for one in new.ended] == [half, "g000009"]
    assert {one.group.state for one in new.ended} == {GroupState.CANCELLED}
    assert new.curriculum.requeued == []
    assert new.ledger.is_balanced and new.ledger[GroupState.CANCELLED] == 2
