"""A run that was stopped at some moment goes on from its checkpoint: nothing twice, nothing reused."""

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

import launch
from configs.load import ConfigError, find, load
from configs.schema import RunConfig
from envpool.source import PoolSource
from envpool.task import Task
from rollout import audit, checkpoints, resume, rundir, snapshot
from rollout.coordinator import Coordinator
from rollout.files import RunFiles, line_files
from rollout.metrics import MetricsWriter
from rollout.processes import describe, is_alive, write_pids
from rollout.resume import Resumed
from rollout.scores import Scores
from rollout.types import Grant, TrainBatch
from rollout.weights import newest_version, note_version, version_log
from tests.fakes import FakeActor, FakeLearner, alternating, make_task

SETTINGS = [
    "local.toml",
    "learner.steps=12",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "rollout.max_lag=6",
    "checkpoint.every=3",
]


class Killed(Exception):
    """Stands for the SIGKILL that ends the process."""


@dataclass
class Part:
    """One of the processes that a run was played in."""

    coordinator: Coordinator
    actor: FakeActor
    learner: FakeLearner
    scores: tuple[Scores, Scores] | None
    """Before and after, of one that came to the end."""


def sources(config: RunConfig) -> dict[str, PoolSource]:
    return {name: PoolSource.load(name, section) for name, section in config.pools.items()}


async def play(
    run_dir: Path,
    config: RunConfig,
    *,
    resumed: Resumed | None = None,
    on_train: Callable[[TrainBatch], None] | None = None,
    verdict: Callable[[Grant, int], float | None] = alternating,
    sets: Mapping[str, list[Task]] | None = None,
) -> Part:
    """Play until the end, or until `on_train` raises `Killed`."""
    files = await asyncio.to_thread(RunFiles, run_dir)
    actor, learner = FakeActor(verdict=verdict), FakeLearner(on_train=on_train)
    actor.version = resumed.version if resumed else 0
    coordinator = Coordinator(
        config=config,
        run_dir=run_dir,
        sources=await asyncio.to_thread(sources, config),
        evaluation_sets=sets or {},
        actors={actor.name: actor},
        learner=learner,
        files=files,
        metrics=MetricsWriter(files, wandb=None),
        clock=time.monotonic,
        resumed=resumed,
    )
    scores = None
    try:
        async with asyncio.timeout(20):
            scores = await coordinator.run()
    except ExceptionGroup as group:
        if not group.subgroup(Killed):
            raise
    finally:
        await asyncio.to_thread(files.close)
    return Part(coordinator, actor, learner, scores)


async def killed_at(
    run_dir: Path, step: int, *settings: str, sets: Mapping[str, list[Task]] | None = None
) -> RunConfig:
    """A run in `run_dir` that was killed while it trained `step`.

    One group, granted just before the newest checkpoint, never ends.
    """
    endless = f"g{2 * ((step - 1) // 3 * 3) + 9:06d}"

    def verdict(grant: Grant, member: int) -> float | None:
        is_endless = grant.group_id == endless and member == 3
        return None if is_endless else alternating(grant, member)

    def on_train(batch: TrainBatch) -> None:
        if batch.step == step:
            raise Killed

    config = await asyncio.to_thread(load, [*SETTINGS, *settings, f"run.dir={run_dir}"])
    await asyncio.to_thread(rundir.write_config, run_dir, config)
    part = await play(run_dir, config, on_train=on_train, verdict=verdict, sets=sets)
    published = max(batch.publish_version or 0 for batch in part.learner.batches)
    # The learner notes a version before it publishes: the one it was killed at is used up too.
    await asyncio.to_thread(note_version, version_log(run_dir), published + 1)
    return config


async def go_on(run_dir: Path, *overrides: str) -> tuple[RunConfig, Resumed]:
    def prepare() -> tuple[RunConfig, Resumed]:
        config, resumed = resume.check(run_dir, list(overrides))
        resume.check_pools(resumed, sources(config))
        resume.begin(run_dir, config, resumed)
        return config, resumed

    return await asyncio.to_thread(prepare)


async def steps_of(run_dir: Path) -> list[tuple[int, int, list[str]]]:
    events = await asyncio.to_thread(lambda: list(audit.events(run_dir, "trained")))
    return [(event["step"], event["version"], event["groups"]) for event in events]


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
    curriculum = Curriculum(shares, seed=config.run.seed, draw=config.rollout.draw)
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


@pytest.mark.parametrize("is_missing", [False, True])
async def test_a_damaged_history_is_refused(tmp_path: Path, is_missing: bool) -> None:
    await killed_at(tmp_path, 6)
    path = tmp_path / "events.jsonl"
    await asyncio.to_thread(path.unlink if is_missing else lambda: path.write_bytes(b""))
    with pytest.raises(ConfigError, match=r"events\.jsonl has 0 bytes and had"):
        await go_on(tmp_path)


async def test_files_begun_after_the_checkpoint_are_gone(tmp_path: Path) -> None:
    """The next part of the rollout log is numbered by those there are; `show` lists evaluations."""
    await killed_at(tmp_path, 6)
    for name in ("part_0001", "eval_step_5"):
        path = tmp_path / "rollouts" / f"{name}.jsonl"
        await asyncio.to_thread(path.write_bytes, b"{}\n")
    _, resumed = await go_on(tmp_path)
    assert set(await asyncio.to_thread(line_files, tmp_path)) == set(resumed.snapshot.sizes)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.path=elsewhere", "model cannot change"),
        ("pools.basics.weight=2", "pools cannot change"),
        ("weights.every=2", "weights.every cannot change"),
        ("learner.steps=2", "add learner.steps=6"),
        ("learner.stepps=3", "stepps"),
    ],
)
async def test_overrides_that_cannot_be_are_refused_with_the_reason(
    tmp_path: Path, override: str, words: str
) -> None:
    await killed_at(tmp_path, 5)
    with pytest.raises(ConfigError, match=words):
        await go_on(tmp_path, override)


async def test_the_runs_own_recipe_names_the_same_model(tmp_path: Path) -> None:
    config = await killed_at(tmp_path, 5)
    path = await asyncio.to_thread(lambda: find(config.model.path).absolute())
    model = msgspec.structs.replace(config.model, path=str(path))
    written = msgspec.structs.replace(config, model=model)
    await asyncio.to_thread(rundir.write_config, tmp_path, written)
    config, _ = await go_on(tmp_path, "local.toml", "rollout.max_lag=3")
    assert config.model == model and config.rollout.max_lag == 3


async def test_overrides_apply_on_top_and_the_old_config_is_kept(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    config, _ = await go_on(tmp_path, "learner.lr=1e-5", "learner.steps=20")
    assert (config.learner.lr, config.learner.steps) == (1e-5, 20)
    assert config.rollout.group_size == 4
    names = await asyncio.to_thread(lambda: sorted(p.name for p in tmp_path.glob("config*.json")))
    assert names == ["config.000.json", "config.json"]


async def test_a_dry_run_says_what_the_config_would_be_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await killed_at(tmp_path, 5)
    before = await asyncio.to_thread((tmp_path / "config.json").read_bytes)
    sizes = await asyncio.to_thread(line_files, tmp_path)
    arguments = ["--resume", str(tmp_path), "learner.lr=1e-5", "--dry-run"]
    assert await asyncio.to_thread(launch.main, arguments) == 0
    path = Path(capsys.readouterr().out.strip().removeprefix("resolved configuration: "))
    assert msgspec.json.decode(await asyncio.to_thread(path.read_bytes))["learner"]["lr"] == 1e-5
    assert await asyncio.to_thread((tmp_path / "config.json").read_bytes) == before
    assert await asyncio.to_thread(line_files, tmp_path) == sizes


async def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    before = await asyncio.to_thread((tmp_path / "config.json").read_bytes)
    await asyncio.to_thread((tmp_path / "config.tmp").mkdir)  # in the way, as a full disk would be
    with pytest.raises(OSError, match=r"config\.tmp"):
        await go_on(tmp_path)
    assert await asyncio.to_thread((tmp_path / "config.json").read_bytes) == before


async def test_a_run_that_is_still_running_is_left_alone(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    await asyncio.to_thread(lambda: write_pids(tmp_path, [describe("launch")]))
    with pytest.raises(ConfigError, match="still running"):
        await go_on(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [("config.json", b""), ("pids.json", b""), ("version.json", b""), ("version.json", b"{}")],
)
async def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    await killed_at(tmp_path, 5)
    await asyncio.to_thread((tmp_path / name).write_bytes, data)
    with pytest.raises(ConfigError, match=rf"{name} is damaged"):
        await go_on(tmp_path)


async def test_survivors_are_ended(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    survivor = await asyncio.create_subprocess_exec("sleep", "600")
    recorded = await asyncio.to_thread(describe, "actor-0", survivor.pid)
    await asyncio.to_thread(write_pids, tmp_path, [recorded])
    await go_on(tmp_path)
    assert not await asyncio.to_thread(is_alive, recorded)
    await survivor.wait()


@pytest.mark.parametrize("name", ["", "no/such/run"])
async def test_a_directory_that_is_no_run_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        await go_on(tmp_path / name)


async def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    await killed_at(tmp_path, 2)
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        await go_on(tmp_path)


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


async def test_a_run_that_came_to_its_end_is_over_until_it_is_trained_on(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=4", f"run.dir={tmp_path}"])
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    await asyncio.to_thread(rundir.write_json, tmp_path / "summary.json", {"steps": 4})
    with pytest.raises(ConfigError, match=r"add learner\.steps=8"):
        await go_on(tmp_path)
    # What it came to is no longer so: nobody may read it as the end of what begins now.
    await go_on(tmp_path, "learner.steps=8")
    paths = await asyncio.to_thread(lambda: [*tmp_path.rglob("summary.json")])
    assert paths == [tmp_path / "abandoned" / "000" / "summary.json"]


async def test_a_finished_run_whose_last_step_published_out_of_turn_is_refused(
    tmp_path: Path,
) -> None:
    settings = [*SETTINGS, "learner.steps=5", "weights.every=2", f"run.dir={tmp_path}"]
    config = await asyncio.to_thread(load, settings)
    await asyncio.to_thread(rundir.write_config, tmp_path, config)
    await play(tmp_path, config)
    with pytest.raises(ConfigError, match=r"weights\.every=2 does not divide 5"):
        await go_on(tmp_path, "learner.steps=8")


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


async def test_changed_code_of_a_pool_is_refused(tmp_path: Path) -> None:
    config = await killed_at(tmp_path, 5)
    _, resumed = await asyncio.to_thread(resume.check, tmp_path, [])
    (source,) = (await asyncio.to_thread(sources, config)).values()
    other = PoolSource(
        name=source.name,
        version="0" * 16,
        envs=source.envs,
        train=source.train,
        trusted=True,
    )
    for now in ({source.name: other}, {}):
        with pytest.raises(ConfigError, match="restore its code"):
            resume.check_pools(resumed, now)


async def test_the_version_is_used_up_before_anything_samples_with_it(tmp_path: Path) -> None:
    await killed_at(tmp_path, 5)
    _, first = await go_on(tmp_path)
    assert await asyncio.to_thread(newest_version, version_log(tmp_path)) == first.version
    _, second = await go_on(tmp_path)
    assert second.version == first.version + 1
    latest = await asyncio.to_thread(checkpoints.latest, tmp_path)
    assert latest is not None and (await asyncio.to_thread(snapshot.read, latest)).step == 3
