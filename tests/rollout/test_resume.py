"""A run that was stopped at some moment goes on from its checkpoint: nothing twice, nothing reused."""

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from configs.load import load
from configs.schema import RunConfig
from rollout import audit, checkpoints, resume, rundir, snapshot
from rollout.files import line_files
from rollout.types import TrainBatch
from rollout.weights import newest_version, note_version, version_log
from tests.fakes import make_task
from tests.resuming import SETTINGS, Killed, go_on, killed_at, play, sources, steps_of


@pytest.mark.parametrize("killed", [4, 5, 6, 8])
async def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, killed: int) -> None:
    await killed_at(tmp_path, killed)
    config, resumed = await go_on(tmp_path)
    state = resumed.snapshot
    assert state.step == (killed - 1) // 3 * 3 and state.queued and state.running
    part = await play(tmp_path, config, resumed=resumed)

    assert [batch.step for batch in part.learner.batches] == [*range(state.step + 1, 13)]
    steps = await steps_of(tmp_path)
    assert [step for step, _, _ in steps] == [*range(1, 13)]
    assert max(Counter(g for _, _, groups in steps for g in groups).values()) == 1
    trained_next = {g.group_id for g in part.learner.batches[0].groups}
    assert trained_next <= {record.id for record in state.queued}
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


async def test_versions_are_never_reused_and_lag_stays_bounded(tmp_path: Path) -> None:
    await killed_at(tmp_path, 6)
    config, resumed = await go_on(tmp_path)
    assert resumed.version == 7  # 1..6 may have been published: step 6 was under way
    part = await play(tmp_path, config, resumed=resumed)
    gradients = [version for _, version, _ in await steps_of(tmp_path)]
    assert gradients == [0, 1, 2, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert [batch.publish_version for batch in part.learner.batches] == [*range(8, 17)]
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    assert max(row.lag for row in rows if row.lag is not None) <= config.rollout.max_lag


async def test_what_was_found_before_training_is_not_played_again(tmp_path: Path) -> None:
    sets = {"fresh": [make_task()]}
    await killed_at(tmp_path, 5, sets=sets)
    config, resumed = await go_on(tmp_path)
    part = await play(tmp_path, config, resumed=resumed, sets=sets)
    assert part.scores is not None and part.scores[0] == resumed.snapshot.before != {}
    labels = {g.group_id.split("/")[1] for g in part.actor.granted if g.is_eval}
    assert labels == {"after"}


async def test_the_time_a_run_took_goes_on(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    config, resumed = await go_on(tmp_path)
    state = msgspec.structs.replace(resumed.snapshot, wall_s=1000.0)
    await play(tmp_path, config, resumed=dataclasses.replace(resumed, snapshot=state))
    lines = await asyncio.to_thread(lambda: (tmp_path / "metrics.jsonl").read_bytes().splitlines())
    walls = [msgspec.json.decode(line)["progress/wall_s"] for line in lines]
    assert max(walls[:3]) < 1000 <= min(walls[3:])


async def test_what_was_being_played_ends_as_cancelled_and_is_drawn_first(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    config, resumed = await go_on(tmp_path)
    halves = {record.id: record.task for record in resumed.snapshot.running}
    part = await play(tmp_path, config, resumed=resumed)
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    assert {row.state for row in rows if row.group_id in halves} == {"cancelled"}
    first = part.actor.granted[: len(halves)]
    assert [grant.task for grant in first] == list(halves.values())
    assert all(grant.members == [0, 1, 2, 3] for grant in first)
    assert not {grant.group_id for grant in first} & set(halves)


async def test_tasks_and_groups_go_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    await killed_at(tmp_path, 8)
    config, resumed = await go_on(tmp_path)
    state = resumed.snapshot
    part = await play(tmp_path, config, resumed=resumed)
    made = [int(grant.group_id[1:]) for grant in part.actor.granted]
    assert made == [*range(state.next_id, state.next_id + len(made))]
    expected = await asyncio.to_thread(undisturbed_tasks, config, state.cursor + 3)
    new = [grant.task for grant in part.actor.granted[len(state.running) :]]
    assert new[:3] == expected[state.cursor : state.cursor + 3]


def undisturbed_tasks(config: RunConfig, number: int) -> list[object]:
    from rollout.curriculum import Curriculum, Share

    shares = {
        source.key: Share(source=source, weight=1.0, envs=source.train)
        for source in sources(config).values()
    }
    # Every group here has signal, so that the shares by signal never change.
    curriculum = Curriculum(shares, config.rollout, seed=config.run.seed)
    return [curriculum.next().task for _ in range(number)]


async def test_a_run_may_be_killed_and_resumed_again_and_again(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    for step in (6, 8, 11):

        def on_train(batch: TrainBatch, at: int = step) -> None:
            if batch.step == at:
                raise Killed

        config, resumed = await go_on(tmp_path)
        part = await play(tmp_path, config, resumed=resumed, on_train=on_train)
        versions = [batch.publish_version or 0 for batch in part.learner.batches]
        used = max([resumed.version, *versions]) + 1
        await asyncio.to_thread(note_version, version_log(tmp_path), used)
    config, resumed = await go_on(tmp_path)
    part = await play(tmp_path, config, resumed=resumed)
    steps = await steps_of(tmp_path)
    assert [step for step, _, _ in steps] == [*range(1, 13)]
    gradients = [version for _, version, _ in steps]
    assert gradients == sorted(set(gradients))
    assert max(Counter(g for _, _, groups in steps for g in groups).values()) == 1
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


@pytest.mark.parametrize(
    ("every", "override"), [(3, "rollout.groups_per_step=1"), (1, "rollout.max_lag=1")]
)
async def test_what_a_lowered_pace_or_bound_leaves_too_late_is_drawn_again(
    tmp_path: Path, every: int, override: str
) -> None:
    await killed_at(tmp_path, every + 1, f"checkpoint.every={every}")
    config, resumed = await go_on(tmp_path, override)
    part = await play(tmp_path, config, resumed=resumed)
    assert [step for step, _, _ in await steps_of(tmp_path)] == [*range(1, 13)]
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    stale = {row.group_id for row in rows if row.state == "stale"}
    assert stale and stale < {record.id for record in resumed.snapshot.queued}
    assert max(row.lag for row in rows if row.lag is not None and (row.step or 0) > every) <= (
        config.rollout.max_lag
    )
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


async def test_what_came_after_the_checkpoint_is_kept_out_of_the_history(tmp_path: Path) -> None:
    await killed_at(tmp_path, 6)
    before = await asyncio.to_thread(lambda: (tmp_path / "events.jsonl").read_bytes())
    _, resumed = await go_on(tmp_path)

    def look() -> tuple[bytes, bytes, dict[str, int]]:
        kept = (tmp_path / "events.jsonl").read_bytes()
        aside = (tmp_path / "abandoned" / "000" / "events.jsonl").read_bytes()
        return kept, aside, line_files(tmp_path)

    kept, aside, sizes = await asyncio.to_thread(look)
    assert kept + aside == before and aside
    assert sizes == resumed.snapshot.sizes
    assert await asyncio.to_thread(resume.set_aside, tmp_path, sizes) is None


async def test_files_begun_after_the_checkpoint_are_gone(tmp_path: Path) -> None:
    """The next part of the rollout log is numbered by those there are; `show` lists evaluations."""
    await killed_at(tmp_path, 6)
    for name in ("part_0001", "eval_step_5"):
        path = tmp_path / "rollouts" / f"{name}.jsonl"
        await asyncio.to_thread(path.write_bytes, b"{}\n")
    _, resumed = await go_on(tmp_path)
    assert set(await asyncio.to_thread(line_files, tmp_path)) == set(resumed.snapshot.sizes)


async def test_an_unfinished_checkpoint_does_not_count(tmp_path: Path) -> None:
    await killed_at(tmp_path, 8)
    await asyncio.to_thread((tmp_path / "checkpoints" / "step_6" / "DONE").unlink)
    _, resumed = await go_on(tmp_path)
    assert resumed.snapshot.step == 3


async def test_a_finished_run_can_be_trained_on(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=4", f"run.dir={tmp_path}"])
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    config, resumed = await go_on(tmp_path, "learner.steps=7")
    part = await play(tmp_path, config, resumed=resumed)
    assert [step for step, _, _ in await steps_of(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


async def test_what_starts_after_a_resume_is_as_new_as_its_weights(tmp_path: Path) -> None:
    """Counted as older than they are, groups would be cancelled as soon as they start."""
    settings = ["learner.steps=4", "rollout.max_lag=1", f"run.dir={tmp_path}"]
    config = await asyncio.to_thread(load, [*SETTINGS, *settings])
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    config, resumed = await go_on(tmp_path, "learner.steps=12")
    part = await play(tmp_path, config, resumed=resumed)
    trained = {group for _, _, groups in await steps_of(tmp_path) for group in groups}
    assert {grant.group_id for grant in part.actor.granted[:4]} <= trained


@pytest.mark.parametrize("every", [1, 3])
async def test_a_run_killed_after_its_last_step_is_evaluated(tmp_path: Path, every: int) -> None:
    settings = ["learner.steps=4", f"weights.every={every}", f"run.dir={tmp_path}"]
    config = await asyncio.to_thread(load, [*SETTINGS, *settings])
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    config, resumed = await go_on(tmp_path)
    part = await play(tmp_path, config, resumed=resumed, sets={"fresh": [make_task()]})
    assert part.learner.batches == [] and part.coordinator.steps_done == 4
    assert {grant.group_id for grant in part.actor.granted} == {
        "eval/after/fresh.sampled/0",
        "eval/after/fresh.greedy/0",
    }
    assert [step for step, _, _ in await steps_of(tmp_path)] == [1, 2, 3, 4]
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


@pytest.mark.parametrize("killed", [5, 8])
async def test_ages_go_on_where_versions_are_published_every_other_step(
    tmp_path: Path, killed: int
) -> None:
    await killed_at(tmp_path, killed, "weights.every=2")
    config, resumed = await go_on(tmp_path)
    part = await play(tmp_path, config, resumed=resumed)
    assert [step for step, _, _ in await steps_of(tmp_path)] == [*range(1, 13)]
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    assert max(row.lag for row in rows if row.lag is not None) <= config.rollout.max_lag
    assert await asyncio.to_thread(audit.recompute, tmp_path) == part.coordinator.ledger.counts()


async def test_the_version_is_used_up_before_anything_samples_with_it(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    _, first = await go_on(tmp_path)
    assert await asyncio.to_thread(newest_version, version_log(tmp_path)) == first.version
    _, second = await go_on(tmp_path)
    assert second.version == first.version + 1
    latest = await asyncio.to_thread(checkpoints.latest, tmp_path)
    assert latest is not None and (await asyncio.to_thread(snapshot.read, latest)).step == 3
