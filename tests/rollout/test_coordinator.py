"""The coordinator over fake actors and a fake learner: what is trained, what is written, what ends."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from rollout import audit, snapshot
from rollout.evaluate import Progress
from rollout.ledger import GroupState
from rollout.supervise import root_cause
from rollout.types import Grant, StopReason, TrainBatch
from tests.coordinating import make_bench
from tests.fakes import FakeActor, FakeLearner, alternating, make_task


async def test_run_trains_every_step_and_its_ledger_is_recomputed_from_files(
    tmp_path: Path,
) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()
    assert [batch.step for batch in bench.learner.batches] == [1, 2, 3, 4, 5, 6]
    live = bench.coordinator.ledger.counts()
    assert live.groups["trained"] == 12
    assert await asyncio.to_thread(audit.recompute, tmp_path) == live


@pytest.mark.parametrize("which", ["first", "trained"])
async def test_removing_a_row_makes_the_check_fail(tmp_path: Path, which: str) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()
    live = bench.coordinator.ledger.counts()

    def damage() -> None:
        (part,) = (tmp_path / "rollouts").glob("part_*.jsonl")
        lines = part.read_text().splitlines(keepends=True)
        index = 0 if which == "first" else next(i for i, x in enumerate(lines) if '"trained"' in x)
        part.write_text("".join(lines[:index] + lines[index + 1 :]))

    await asyncio.to_thread(damage)
    with pytest.raises(audit.AuditError, match="expected"):
        assert await asyncio.to_thread(audit.recompute, tmp_path) == live


async def test_removing_a_whole_group_makes_the_check_fail(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()

    def damage() -> None:
        (part,) = (tmp_path / "rollouts").glob("part_*.jsonl")
        lines = part.read_text().splitlines(keepends=True)
        gone = msgspec.json.decode(next(x for x in lines if '"trained"' in x))["group_id"]
        part.write_text("".join(x for x in lines if gone not in x))

    await asyncio.to_thread(damage)
    with pytest.raises(audit.AuditError, match="disagree"):
        await asyncio.to_thread(audit.recompute, tmp_path)


async def test_thirty_percent_filtered_groups_do_not_stall_the_run(tmp_path: Path) -> None:
    def verdict(grant: Grant, member: int) -> float:
        return 1.0 if int(grant.group_id[1:]) % 10 < 3 else float(member % 2)

    bench = await make_bench(tmp_path, "learner.steps=30", actors=[FakeActor(verdict=verdict)])
    await bench.run()
    counts = bench.coordinator.ledger.counts()
    assert counts.groups["trained"] == 60
    assert counts.groups["filtered"] >= 18
    assert await asyncio.to_thread(audit.recompute, tmp_path) == counts


async def test_faults_are_retried_logged_and_never_trained_on(tmp_path: Path) -> None:
    def verdict(grant: Grant, member: int) -> float | StopReason:
        if member == 0 and grant.attempt == 0:
            return StopReason.ENV_ERROR
        if member == 1:
            return StopReason.TIMEOUT
        return float(member % 2)

    bench = await make_bench(tmp_path, actors=[FakeActor(verdict=verdict)])
    await bench.run()
    rows = await bench.rows()
    trained = [r for batch in bench.learner.batches for g in batch.groups for r in g.rollouts]
    assert trained and all(r.reward is not None and not r.stop.is_fault for r in trained)
    faults = [row for row in rows if row.stop.is_fault]
    assert {row.stop for row in faults} == {StopReason.ENV_ERROR, StopReason.TIMEOUT}
    assert all(row.reward is None and row.error for row in faults)
    ended = {row.group_id for row in rows if row.state is GroupState.TRAINED}
    assert all(sum(r.group_id == g and r.stop.is_fault for r in rows) == 3 for g in ended)


async def test_a_slow_engine_never_makes_lag_exceed_the_bound_nor_a_buffer_be_overwritten(
    tmp_path: Path,
) -> None:
    actor = FakeActor()
    actor.gate.clear()
    held: dict[int, int] = {}

    def on_train(batch: TrainBatch) -> None:
        held[batch.step] = actor.version
        if batch.step == 2:
            actor.gate.set()

    learner = FakeLearner(on_train=on_train)
    bench = await make_bench(tmp_path, "rollout.max_lag=2", actors=[actor], learner=learner)
    await bench.run()
    lags = [row.lag for row in await bench.rows() if row.lag is not None]
    assert max(lags) == bench.coordinator.lag_max == 2
    assert held[2] == 0  # step 2 did not wait for the engine to load version 1
    assert held[3] >= 1  # step 3 writes where version 1 was: it did


async def test_max_lag_0_trains_only_what_the_newest_weights_sampled(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "rollout.max_lag=0")
    await bench.run()
    assert {row.lag for row in await bench.rows() if row.lag is not None} == {0}
    assert bench.actors[0].loaded == [1, 2, 3, 4, 5, 6]


async def test_weights_every_2_publishes_half_as_often_and_at_the_end(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "weights.every=2", "learner.steps=5")
    await bench.run()
    published = [batch.publish_version for batch in bench.learner.batches]
    assert published == [None, 1, None, 2, 3]
    assert [batch.version for batch in bench.learner.batches] == [0, 0, 1, 1, 2]


async def test_a_grant_is_at_most_an_actors_share_of_the_free_slots(tmp_path: Path) -> None:
    actors = [FakeActor("actor-0"), FakeActor("actor-1")]
    bench = await make_bench(tmp_path, "learner.steps=1", "rollout.max_lag=1", actors=actors)
    await bench.run()
    first = [len(actor.granted) for actor in actors]
    assert min(first) >= 1  # neither took all four slots
    assert all(grant.members == [0, 1, 2, 3] for actor in actors for grant in actor.granted)


async def test_the_end_of_training_cancels_what_still_runs(tmp_path: Path) -> None:
    def verdict(grant: Grant, member: int) -> float | None:
        return None if grant.group_id == "g000001" and member == 2 else alternating(grant, member)

    bench = await make_bench(tmp_path, "learner.steps=1", actors=[FakeActor(verdict=verdict)])
    await bench.run()
    assert "g000001" in bench.actors[0].cancelled
    (row,) = [r for r in await bench.rows() if r.group_id == "g000001" and r.member == 2]
    assert row.stop is StopReason.CANCELLED and row.reward is None
    assert bench.coordinator.ledger.live == 0


async def test_a_run_in_which_nothing_happens_explains_itself_and_stops(tmp_path: Path) -> None:
    stuck = FakeActor(verdict=lambda grant, member: None)
    bench = await make_bench(tmp_path, "control.stall_s=0.2", actors=[stuck])
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    text = str(root_cause(raised.value))
    assert "nothing happened" in text and "lacks members [0, 1, 2, 3]" in text


@pytest.mark.parametrize("verdict", [0.0, StopReason.ENGINE_ERROR])
async def test_a_run_whose_groups_never_have_signal_explains_itself_and_stops(
    tmp_path: Path, verdict: float | StopReason
) -> None:
    actor = FakeActor(verdict=lambda grant, member: verdict)
    bench = await make_bench(tmp_path, actors=[actor])
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    text = str(root_cause(raised.value))
    assert "100 groups in a row" in text
    assert ("100 failed" in text) is isinstance(verdict, StopReason)


async def test_groups_that_fail_with_unequal_verdicts_do_not_keep_a_run_alive(
    tmp_path: Path,
) -> None:
    """Two of four members never have a verdict; those of the others differ."""

    def verdict(grant: Grant, member: int) -> float | StopReason:
        return StopReason.TIMEOUT if member < 2 else float(member % 2)

    bench = await make_bench(tmp_path, actors=[FakeActor(verdict=verdict)])
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "100 groups in a row" in str(root_cause(raised.value))


async def test_grants_have_the_recipes_temperature_retries_too(tmp_path: Path) -> None:
    def verdict(grant: Grant, member: int) -> float | StopReason:
        is_first = member == 0 and grant.attempt == 0
        return StopReason.TIMEOUT if is_first else float(member % 2)

    bench = await make_bench(
        tmp_path, "rollout.temperature=0.5", actors=[FakeActor(verdict=verdict)]
    )
    await bench.run()
    granted = bench.actors[0].granted
    assert {grant.temperature for grant in granted} == {0.5}
    assert {grant.attempt for grant in granted} == {0, 1}


async def test_the_learner_is_told_the_bound_it_must_assert(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "rollout.max_lag=3")
    await bench.run()
    assert {batch.max_lag for batch in bench.learner.batches} == {3}


async def test_a_group_named_in_two_steps_makes_the_check_fail(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()

    def damage() -> None:
        path = tmp_path / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(
            "".join([*lines, next(x for x in lines if '"trained"' in x and "step" in x)])
        )

    await asyncio.to_thread(damage)
    with pytest.raises(audit.AuditError, match="disagree"):
        await asyncio.to_thread(audit.recompute, tmp_path)


async def test_a_checkpoint_holds_queue_cursor_and_ledger(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "checkpoint.every=3", "checkpoint.keep=9")
    await bench.run()
    path = tmp_path / "checkpoints" / "step_3"
    saved = await asyncio.to_thread(snapshot.read, path)
    assert saved.queued and saved.cursor >= 6 + len(saved.queued)
    assert saved.next_id == saved.cursor  # nothing was requeued
    assert saved.ledger.groups["trained"] == 6
    assert all(len(record.done) == record.size for record in saved.queued)


async def test_an_engine_that_does_not_load_in_time_is_named(tmp_path: Path) -> None:
    actor = FakeActor("actor-0")
    actor.gate.clear()
    bench = await make_bench(tmp_path, "weights.deadline_s=0.1", actors=[actor])
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "actor-0 did not load version 1" in str(root_cause(raised.value))


async def test_a_learner_that_fails_ends_the_run_with_its_rows_on_disk(tmp_path: Path) -> None:
    def on_train(batch: TrainBatch) -> None:
        if batch.step == 3:
            raise RuntimeError("loss is not finite")

    bench = await make_bench(tmp_path, learner=FakeLearner(on_train=on_train))
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "not finite" in str(root_cause(raised.value))
    assert bench.coordinator.ledger.live == 0
    recomputed = await asyncio.to_thread(audit.recompute, tmp_path)
    assert recomputed == bench.coordinator.ledger.counts()


async def test_metrics_hold_the_keys_users_look_for(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()
    data = await asyncio.to_thread((tmp_path / "metrics.jsonl").read_bytes)
    lines = [msgspec.json.decode(line) for line in data.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    wanted = {
        "reward/mean",
        "reward/all_mean",
        "group/frac_mixed",
        "lag/mean",
        "lag/max",
        "stop/answered",
        "rollout/tokens_mean",
        "rollout/bad_call_frac",
        "rollout/repeated_call_frac",
        "pool/basics/reward_mean",
        "alarm/signs",
        "time/step_s",
        "time/wait_rollout_s",
        "time/wait_learner_s",
        "time/sync_s",
    }
    assert wanted <= set(lines[-1])


async def test_checkpoints_are_complete_and_only_the_newest_are_kept(
    tmp_path: Path,
) -> None:
    bench = await make_bench(tmp_path, "checkpoint.every=2", "checkpoint.keep=2")
    await bench.run()
    kept = await asyncio.to_thread(lambda: sorted((tmp_path / "checkpoints").iterdir()))
    assert [path.name for path in kept] == ["step_4", "step_6"]
    for path in kept:
        saved = await asyncio.to_thread(snapshot.read, path)
        assert f"step_{saved.step}" == path.name
        assert await asyncio.to_thread((path / "DONE").exists)


async def test_a_retry_of_a_group_that_ended_meanwhile_is_not_played(tmp_path: Path) -> None:
    """The fault that asks for it arrives with the end of training."""
    bench = await make_bench(tmp_path, "learner.steps=1")
    coordinator, actor = bench.coordinator, bench.actors[0]
    gone = Grant(group_id="g999999", task=make_task(), members=[0], attempt=1)
    coordinator._feed.retry(actor.name, gone)
    await bench.run()
    assert gone not in actor.granted
    assert coordinator._fleet.is_idle


async def test_status_says_how_far_an_evaluation_is(tmp_path: Path) -> None:
    seen: list[Progress | None] = []

    def verdict(grant: Grant, member: int) -> float:
        seen.append(bench.coordinator.status().evaluation)
        return alternating(grant, member)

    bench = await make_bench(
        tmp_path,
        "learner.steps=1",
        "engine.max_running=4",
        actors=[FakeActor(verdict=verdict)],
        evaluation_sets={"fresh": [make_task(number=number) for number in range(4)]},
    )
    await bench.run()
    assert seen[0] == Progress(label="before", done=0, total=8)
    assert max(progress.done for progress in seen if progress is not None) >= 4
    assert bench.coordinator.status().evaluation is None
