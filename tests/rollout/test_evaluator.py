"""Evaluation beside training: one version each, apart from ledger and queue, and in nobody's way."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from configs.load import ConfigError, load
from configs.schema import RunConfig
from envpool.pool import EnvPool
from envpool.source import PoolSource
from envpool.task import Task
from learner.publish import Publisher, named_weights
from rollout import audit
from rollout.actor import Actor
from rollout.coordinator import Coordinator
from rollout.engine import EngineError, UpdateMode, UpdateReport
from rollout.engine_local import LocalEngine
from rollout.episode import Limits
from rollout.evaluate import draw_sets
from rollout.evaluator import MAX_IN_FLIGHT, Evaluator
from rollout.files import RolloutRow, RunFiles
from rollout.metrics import MetricsWriter, Values
from rollout.model import load_model
from rollout.select import labels, parse, select
from rollout.tokens import ChatTokens
from rollout.types import ActorEvent, EngineStats, Grant, StepReport, StopReason, TrainBatch
from rollout.weights import Manifest, WeightsError, pin_names
from tests.fakes import FakeActor, FakeLearner, Verdict, alternating, make_task
from tests.recipes import BASICS

POLICY = Path(__file__).parents[2] / "configs" / "tiny_policy" / "policy"
Sets = Mapping[str, list[Task]]

SETS: Sets = {"fresh": [make_task(number=number) for number in range(20)]}
SETTINGS = [
    BASICS,
    "learner.steps=6",
    "rollout.group_size=4",
    "rollout.groups_per_step=2",
    "checkpoint.every=0",
    "eval.before=false",
    "eval.after=false",
    "eval.every=2",
    "eval.during=3",
]


class PatientLearner(FakeLearner):
    """Trains step 4 and later ones only when the evaluation of step 2 is over."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder)
        self.evaluator: Evaluator | None = None

    async def train(self, batch: TrainBatch) -> StepReport:
        assert self.evaluator is not None
        if batch.step >= 4:
            await self.evaluator.is_idle.wait()
        return await super().train(batch)


class Bench:
    """A coordinator with an evaluator in a temporary run directory."""

    def __init__(
        self, tmp_path: Path, evaluating: FakeActor, learner: FakeLearner, *settings: str
    ) -> None:
        self.run_dir = tmp_path
        self.config: RunConfig = load([*SETTINGS, *settings])
        self.actor, self.evaluating, self.learner = FakeActor(), evaluating, learner
        self.files = RunFiles(tmp_path)
        self.evaluator = make_evaluator(self.config, evaluating, self.files)
        self.coordinator = Coordinator(
            config=self.config,
            run_dir=tmp_path,
            sources={n: PoolSource.load(n, s) for n, s in self.config.pools.items()},
            evaluation_sets=SETS,
            actors={self.actor.name: self.actor},
            learner=learner,
            files=self.files,
            metrics=MetricsWriter(self.files, wandb=None),
            clock=time.monotonic,
            evaluator=self.evaluator,
        )

    async def run(self) -> list[Values]:
        """Play it; returns the lines of the metrics."""
        try:
            async with asyncio.timeout(20):
                await self.coordinator.run()
        finally:
            await asyncio.to_thread(self.files.close)
        data = await asyncio.to_thread((self.run_dir / "metrics.jsonl").read_bytes)
        return [msgspec.json.decode(line) for line in data.splitlines()]


def make_evaluator(
    config: RunConfig,
    actor: FakeActor | Actor,
    files: RunFiles,
    *,
    sets: Sets = SETS,
    step: int = 0,
) -> Evaluator:
    return Evaluator(
        actor,
        config=config,
        sets=sets,
        run_id="run",
        files=files,
        clock=time.monotonic,
        step=step,
    )


async def make_bench(
    tmp_path: Path, *settings: str, verdict: Verdict = alternating, actor: FakeActor | None = None
) -> Bench:
    """With files of weights, as the evaluator needs them."""
    learner = PatientLearner(tmp_path)
    evaluating = actor or FakeActor("evaluator", verdict=verdict)
    bench = await asyncio.to_thread(Bench, tmp_path, evaluating, learner, *settings)
    learner.evaluator = bench.evaluator
    return bench


@asynccontextmanager
async def playing(
    run_dir: Path, config: RunConfig, actor: FakeActor | Actor, sets: Sets = SETS
) -> AsyncIterator[Evaluator]:
    """A running evaluator without a run around it."""
    files = await asyncio.to_thread(RunFiles, run_dir)
    evaluator = make_evaluator(config, actor, files, sets=sets)
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        task = group.create_task(evaluator.run())
        try:
            yield evaluator
        finally:
            task.cancel()
    await asyncio.to_thread(files.close)


async def found(evaluator: Evaluator, published: Manifest | None) -> Values:
    """What comes of an evaluation, of the version if there is one."""
    values = evaluator.stepped(published)
    assert not values
    await evaluator.is_idle.wait()
    return evaluator.stepped(None)


def manifest(path: Path, step: int) -> Manifest:
    return Manifest(version=step, step=step, path=str(path), num_bytes=0, checksum="")


async def written(folder: Path, step: int) -> Manifest:
    """A version whose file is there."""
    path = folder / "weights"
    await asyncio.to_thread(path.write_text, str(step))
    return manifest(path, step)


async def pins(folder: Path) -> list[str]:
    """What is in the pinned files."""
    paths = pin_names(folder, "run")
    return await asyncio.to_thread(lambda: [one.read_text() for one in paths if one.exists()])


def rows_of(run_dir: Path, step: int) -> list[RolloutRow]:
    path = run_dir / "rollouts" / f"eval_step_{step}.jsonl"
    return [msgspec.json.decode(x, type=RolloutRow) for x in path.read_bytes().splitlines()]


async def test_due_versions_are_evaluated_and_their_values_are_in_the_metrics(
    tmp_path: Path,
) -> None:
    bench = await make_bench(tmp_path, verdict=lambda grant, _: float(grant.temperature == 0))
    lines = await bench.run()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    line = next(line for line in lines if "eval/step" in line)
    # Step 4 waits for it; step 3 may or may not be over by then.
    assert line["step"] in (3, 4)
    assert (line["eval/step"], line["eval/version"], line["eval/faults"]) == (2, 2, 0)
    assert (line["eval/fresh/sampled"], line["eval/fresh/greedy"]) == (0.0, 1.0)
    assert {"eval/wall_s", "eval/cpu_s"} <= set(line)
    assert bench.evaluating.loaded[0] == 2
    rows = await asyncio.to_thread(rows_of, tmp_path, 2)
    assert len(rows) == 6 and {row.env for row in rows} == {"sum_list"}
    assert {tuple(row.versions) for row in rows} == {(2,)}


async def test_its_episodes_are_in_no_ledger_and_no_queue(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    await bench.run()
    assert bench.evaluating.granted and all(g.is_eval for g in bench.evaluating.granted)
    assert not any(g.is_eval for g in bench.actor.granted)
    trained = [g.group_id for batch in bench.learner.batches for g in batch.groups]
    assert trained and not any(name.startswith("eval/") for name in trained)
    live = bench.coordinator.ledger.counts()
    rows = await asyncio.to_thread(lambda: list(audit.rows(tmp_path)))
    assert await asyncio.to_thread(audit.recompute, tmp_path) == live
    assert not any(row.group_id.startswith("eval/") for row in rows)
    busy = await asyncio.to_thread(lambda: list(audit.events(tmp_path, "busy")))
    assert not busy


async def test_the_end_of_training_does_not_wait_for_it(tmp_path: Path) -> None:
    actor = FakeActor("evaluator", verdict=lambda grant, member: None)
    learner = FakeLearner(folder=tmp_path)
    settings = ["learner.steps=30", "eval.after=true"]
    bench = await asyncio.to_thread(Bench, tmp_path, actor, learner, *settings)
    lines = await bench.run()
    assert len(lines) == 30 and not any("eval/step" in line for line in lines)
    assert len(actor.granted) <= MAX_IN_FLIGHT
    assert {grant.group_id for grant in actor.granted} == set(actor.cancelled)
    assert await asyncio.to_thread(labels, tmp_path) == ["after"]


class BrokenActor(FakeActor):
    """Dies as soon as it has something to play."""

    async def events(self) -> list[ActorEvent]:
        await super().events()
        raise ConnectionError("the process is gone")


async def test_its_failure_is_loud_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = await make_bench(tmp_path, actor=BrokenActor("evaluator"))
    lines = await bench.run()
    assert len(lines) == 6 and sum("eval/is_off" in line for line in lines) == 1
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "off for the rest of this run" in record.message
    assert "the process is gone" in record.message


async def test_a_version_that_cannot_be_read_is_skipped_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = await asyncio.to_thread(load, SETTINGS)
    async with playing(tmp_path, config, FakeActor("evaluator")) as evaluator:
        evaluator.stepped(manifest(tmp_path / "gone", 2))
        await evaluator.is_idle.wait()
        assert "version 2 (step 2) is not evaluated: FileNotFoundError" in caplog.text
        assert evaluator.stepped(await written(tmp_path, 3)) == {}
        assert evaluator.is_idle.is_set()  # it was not due
        values = await found(evaluator, await written(tmp_path, 4))
        assert values["eval/step"] == 4


class PickyActor(FakeActor):
    """Takes one version not: with `error`, or, where that is None, never in time."""

    def __init__(self, error: Exception | None, *, refused: int = 2) -> None:
        super().__init__("evaluator")
        self._error = error
        self._refused = refused

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        if manifest.version == self._refused and self._error is None:
            await asyncio.Event().wait()
        if manifest.version == self._refused and self._error is not None:
            raise self._error
        return await super().update_weights(manifest)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (WeightsError("not the file"), "WeightsError: not the file"),
        (EngineError("no room"), "EngineError: no room"),
        (None, "TimeoutError: not loaded within weights.deadline_s=0.2"),
    ],
)
async def test_a_version_that_does_not_load_is_skipped_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception | None, words: str
) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "weights.deadline_s=0.2"])
    async with playing(tmp_path, config, PickyActor(error)) as evaluator:
        assert await found(evaluator, await written(tmp_path, 2)) == {}
        assert f"version 2 (step 2) is not evaluated: {words}" in caplog.text
        assert await pins(tmp_path) == []
        assert (await found(evaluator, await written(tmp_path, 4)))["eval/step"] == 4


async def test_what_the_engine_serves_stays_readable_until_it_serves_another(
    tmp_path: Path,
) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=20"])
    actor = PickyActor(EngineError("no room"), refused=4)
    async with playing(tmp_path, config, actor) as evaluator:
        for step, served in ((2, "2"), (4, "2"), (6, "6"), (8, "8")):
            await found(evaluator, await written(tmp_path, step))
            # The run writes its next versions over it.
            await asyncio.to_thread((tmp_path / "weights").unlink)
            assert await pins(tmp_path) == [served]
        evaluator.end()
        while await pins(tmp_path):
            continue


async def test_episodes_that_never_end_end_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "control.stall_s=0.2"])
    actor = FakeActor("evaluator", verdict=lambda grant, member: None)
    async with playing(tmp_path, config, actor) as evaluator:
        assert await found(evaluator, await written(tmp_path, 2)) == {"eval/is_off": 1}
    assert "no episode of step_2 ended within control.stall_s=0.2" in caplog.text


class ForgetfulActor(FakeActor):
    """Says that it loaded a version, and goes on with the one it had."""

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        return UpdateReport(version=manifest.version, load_s=0.0, stall_s=0.0)


async def test_episodes_of_another_version_are_no_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = await asyncio.to_thread(load, SETTINGS)
    async with playing(tmp_path, config, ForgetfulActor("evaluator")) as evaluator:
        assert await found(evaluator, await written(tmp_path, 2)) == {"eval/is_off": 1}
    assert "versions {0} played an evaluation of 2" in caplog.text


def stats(*, cpu_s: float) -> EngineStats:
    return EngineStats(
        version=0,
        running=0,
        waiting=0,
        cached_rows=0,
        kv_used_frac=0.0,
        prompt_tokens=0,
        prefix_hit_tokens=0,
        sampled_tokens=0,
        recomputed_tokens=0,
        busy_s=0.0,
        cpu_s=cpu_s,
    )


class BusyActor(FakeActor):
    """Says before each version's first episode how much it has computed in all."""

    def __init__(self) -> None:
        super().__init__("evaluator")
        self.most_granted = 0
        self._told = 0

    async def play(self, grants: list[Grant]) -> None:
        self.most_granted = max(self.most_granted, len(grants))
        if len(self.loaded) > self._told:
            self._told = len(self.loaded)
            self.say(stats(cpu_s=self._told * (self._told + 1) / 2))
        await super().play(grants)


async def test_each_evaluation_is_told_its_own_cpu_time_and_plays_few_episodes_at_once(
    tmp_path: Path,
) -> None:
    settings = [*SETTINGS, "eval.during=20", "learner.steps=9"]
    config = await asyncio.to_thread(load, settings)
    actor = BusyActor()
    async with playing(tmp_path, config, actor) as evaluator:
        costs = [
            (await found(evaluator, await written(tmp_path, step)))["eval/cpu_s"]
            for step in (2, 4, 6)
        ]
    assert costs == [1.0, 2.0, 3.0]
    assert len(actor.granted) == 3 * 2 * 20 and actor.most_granted == MAX_IN_FLIGHT


async def test_while_it_plays_nothing_new_begins_and_the_next_version_afterwards_does(
    tmp_path: Path,
) -> None:
    actor = FakeActor("evaluator")
    actor.gate.clear()
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=99"])
    async with playing(tmp_path, config, actor) as evaluator:
        for step in range(1, 7):
            evaluator.stepped(await written(tmp_path, step))
        actor.gate.set()
        await evaluator.is_idle.wait()
        assert evaluator.stepped(None)["eval/step"] == 2
        # Steps 4 and 6 were missed: the next one makes up for them, and need not wait for step 8.
        assert (await found(evaluator, await written(tmp_path, 7)))["eval/step"] == 7
        assert actor.loaded == [2, 7]
        evaluator.stepped(await written(tmp_path, 99))  # left to the evaluation after training
        assert evaluator.is_idle.is_set()


async def test_faults_are_played_once_more_and_counted_apart(tmp_path: Path) -> None:
    def verdict(grant: Grant, member: int) -> float | StopReason:
        index = int(grant.group_id.rpartition("/")[2])
        if index == 0 or (index == 1 and grant.attempt == 0):
            return StopReason.ENV_ERROR
        return 1.0

    config = await asyncio.to_thread(load, SETTINGS)
    actor = FakeActor("evaluator", verdict=verdict)
    async with playing(tmp_path, config, actor) as evaluator:
        values = await found(evaluator, await written(tmp_path, 2))
    assert values["eval/faults"] == 2 and values["eval/fresh/sampled"] == 1.0
    assert len(actor.granted) == 3 * 2 + 4


async def test_a_resumed_run_goes_on_with_the_next_due_step(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, [*SETTINGS, "learner.steps=99", "eval.every=20"])
    files = await asyncio.to_thread(RunFiles, tmp_path)
    evaluator = make_evaluator(config, FakeActor(), files, step=20)
    evaluator.stepped(manifest(tmp_path, 39))
    assert evaluator.is_idle.is_set()
    evaluator.stepped(manifest(tmp_path, 40))
    assert not evaluator.is_idle.is_set()
    await asyncio.to_thread(files.close)


async def test_what_its_node_cannot_read_is_not_pinned(tmp_path: Path) -> None:
    config = await asyncio.to_thread(load, SETTINGS)
    far = await asyncio.to_thread(RunFiles, tmp_path)
    actor = FakeActor("evaluator")
    evaluator = Evaluator(
        actor,
        config=config,
        sets=SETS,
        run_id="run",
        files=far,
        clock=time.monotonic,
        pins=False,
    )
    serving = asyncio.create_task(evaluator.run())
    # The file is on the learner's node: nothing here has that path.
    evaluator.offer(manifest(tmp_path / "elsewhere", 2))
    await evaluator.is_idle.wait()
    assert evaluator.stepped(None)["eval/step"] == 2 and actor.loaded == [2]
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await asyncio.to_thread(far.close)


def test_nothing_to_play_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.every=5 has nothing to play: .*eval\.sets"):
        load(["eval.every=5"])


async def test_a_real_actor_plays_real_episodes_with_one_version(tmp_path: Path) -> None:
    """Engine, environments and published weights as in a run, in this process."""
    settings = ["eval.during=4", "eval.sets.fresh.count=5", "learner.steps=9"]
    config = await asyncio.to_thread(load, [*SETTINGS, *settings])
    sources = await asyncio.to_thread(
        lambda: {name: PoolSource.load(name, s) for name, s in config.pools.items()}
    )
    sets = draw_sets({"fresh": config.eval.sets["fresh"]}, sources, seed=config.run.seed)
    model = await asyncio.to_thread(load_model, POLICY, "float32")
    publisher = await asyncio.to_thread(
        lambda: Publisher(
            directory=str(tmp_path), fallback=tmp_path, run_id="run", log=tmp_path / "version.json"
        )
    )
    manifests = [
        await asyncio.to_thread(publisher.publish, named_weights(model), version=v, step=v)
        for v in (1, 2)
    ]
    async with await EnvPool.start(config.pools, limits=config.envpool) as pool:
        engine = await LocalEngine.start(
            POLICY, dtype="float32", section=config.engine, max_context_tokens=320
        )
        actor = await Actor.start(
            name="evaluator",
            engine=engine,
            sessions=pool,
            tokens=await asyncio.to_thread(ChatTokens.load, POLICY),
            limits=Limits(
                max_turns=12, max_reply_tokens=16, max_context_tokens=320, timeout_s=30.0
            ),
            update_mode=UpdateMode.RECOMPUTE,
        )
        async with playing(tmp_path, config, actor, sets) as evaluator:
            values = await found(evaluator, manifests[1])
        await actor.close()
    assert values["eval/faults"] == 0 and values["eval/cpu_s"] > 0
    rows = await asyncio.to_thread(
        lambda: select(tmp_path, parse(["eval=step_2", "limit=99"])).rows
    )
    assert len(rows) == 8 and {tuple(row.versions) for row in rows} == {(2,)}
    means = [row.reward for row in rows if "greedy" in row.group_id and row.reward is not None]
    assert sum(means) / 4 == values["eval/fresh/greedy"]
