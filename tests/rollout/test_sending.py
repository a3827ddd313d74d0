"""Versions that the learner sends: both ends meet, nobody goes on before, and what ends badly ends the run."""

import asyncio
import re
import textwrap
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from configs.load import ConfigError, load
from rollout.engine import EngineError, UpdateReport
from rollout.engines import check_engine
from rollout.joining import join_groups
from rollout.types import StepReport, TrainBatch, decode_report, encode
from rollout.weights import Adapter, Endpoint, Manifest, TensorSpec
from tests.coordinating import make_bench
from tests.fakes import FakeActor, FakeLearner
from tests.recipes import BASICS

CONFIGS = Path(__file__).parent.parent.parent / "configs"

SENT = Manifest(
    version=3,
    step=7,
    num_bytes=24,
    transport="nccl",
    tensors=[TensorSpec("a.weight", "float32", [2, 3]), TensorSpec("b", "bfloat16", [])],
)


class Wire:
    """Where the two ends of a transfer wait for each other."""

    def __init__(self) -> None:
        self._barriers: dict[tuple[str, int], asyncio.Barrier] = defaultdict(
            lambda: asyncio.Barrier(2)
        )
        self.loading: set[str] = set()
        self.most_loading = 0

    async def meet(self, actor: str, version: int) -> None:
        await self._barriers[actor, version].wait()


class LoadingActor(FakeActor):
    """Loads what is sent to it, and waits until it is."""

    def __init__(self, name: str, wire: Wire) -> None:
        super().__init__(name)
        self.wire = wire
        self.error: Exception | None = None

    async def update_weights(self, manifest: Manifest) -> UpdateReport:
        assert manifest.is_sent
        self.wire.loading.add(self.name)
        self.wire.most_loading = max(self.wire.most_loading, len(self.wire.loading))
        if self.error is not None:
            raise self.error
        await self.wire.meet(self.name, manifest.version)
        self.wire.loading.remove(self.name)
        return await super().update_weights(manifest)


class SendingLearner(FakeLearner):
    """Publishes by sending; its weights are those of the version it published last."""

    def __init__(self, wire: Wire, actors: list[LoadingActor]) -> None:
        super().__init__()
        self.wire = wire
        self.actors = actors
        self.newest = 0
        self.error: Exception | None = None
        self.is_coming = True

    async def train(self, batch: TrainBatch) -> StepReport:
        held = {actor.version for actor in self.actors}
        assert held == {self.newest}, f"step {batch.step} begins while the engines hold {held}"
        report = await super().train(batch)
        if report.manifest is None:
            return report
        self.newest = report.manifest.version
        manifest = msgspec.structs.replace(SENT, version=self.newest, step=batch.step)
        return msgspec.structs.replace(report, manifest=manifest)

    async def save(self, directory: str) -> None:
        assert {actor.version for actor in self.actors} == {self.newest}
        await super().save(directory)

    async def send(self, actor: str, version: int) -> None:
        assert version == self.newest
        if self.error is not None:
            raise self.error
        if not self.is_coming:
            await asyncio.Event().wait()
        await self.wire.meet(actor, version)
        await super().send(actor, version)


def ends(num_actors: int = 2) -> tuple[list[LoadingActor], SendingLearner]:
    wire = Wire()
    actors = [LoadingActor(f"actor-{i}", wire) for i in range(num_actors)]
    return actors, SendingLearner(wire, actors)


@pytest.mark.parametrize("every", [1, 2])
async def test_each_version_is_sent_to_each_engine_before_the_next_step(
    tmp_path: Path, every: int
) -> None:
    actors, learner = ends()
    settings = [f"weights.every={every}", "checkpoint.every=2", "learner.steps=4"]
    bench = await make_bench(tmp_path, *settings, actors=actors, learner=learner)
    await bench.run()
    versions = [batch.publish_version for batch in learner.batches if batch.publish_version]
    assert len(versions) == 4 // every
    assert learner.sent == [(actor.name, version) for version in versions for actor in actors]
    for actor in actors:
        assert actor.loaded == versions
    assert learner.saved


async def test_an_engine_stands_still_for_its_own_transfer_alone(tmp_path: Path) -> None:
    actors, learner = ends(3)
    bench = await make_bench(tmp_path, "learner.steps=2", actors=actors, learner=learner)
    await bench.run()
    assert actors[0].wire.most_loading == 1


async def test_a_sender_that_fails_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    actors, learner = ends()
    learner.error = RuntimeError("NCCL error: unhandled system error")
    bench = await make_bench(tmp_path, actors=actors, learner=learner)
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    said = str(raised.value.exceptions[0])
    assert "could not be sent to actor-0: NCCL error: unhandled system error" in said
    assert "--resume" in said
    assert not actors[0].loaded


async def test_an_engine_that_fails_ends_the_run_although_the_sender_waits(tmp_path: Path) -> None:
    actors, learner = ends()
    actors[1].error = EngineError("version 1 was not loaded: out of memory")
    bench = await make_bench(tmp_path, actors=actors, learner=learner)
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "could not be sent to actor-1: version 1 was not loaded" in str(
        raised.value.exceptions[0]
    )


async def test_a_sender_that_never_comes_ends_the_run_at_the_deadline(tmp_path: Path) -> None:
    actors, learner = ends()
    learner.is_coming = False
    bench = await make_bench(tmp_path, "weights.deadline_s=0.2", actors=actors, learner=learner)
    with pytest.raises(ExceptionGroup) as raised:
        await bench.run()
    assert "actor-0 did not load version 1 within weights.deadline_s=0.2" in str(
        raised.value.exceptions[0]
    )


async def test_every_engine_meets_the_learner_where_it_waits() -> None:
    actors = {f"actor-{i}": FakeActor(f"actor-{i}") for i in range(3)}
    learner = FakeLearner()
    await join_groups(actors, learner, timeout_s=5)
    assert learner.joined == list(actors)
    for i, (name, actor) in enumerate(actors.items()):
        assert actor.joined is not None
        assert (actor.joined.address, actor.joined.port) == (name, i)


async def test_a_learner_that_does_not_come_is_named_with_the_cure() -> None:
    class AbsentLearner(FakeLearner):
        async def join_group(self, actor: str) -> None:
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=r"actor-0 did not meet within .*=0\.1.*any port"):
        await join_groups({"actor-0": FakeActor()}, AbsentLearner(), timeout_s=0.1)


async def test_an_engine_that_cannot_join_says_why() -> None:
    class FileActor(FakeActor):
        async def join(self, endpoint: Endpoint) -> None:
            raise EngineError("LocalEngine reads weights from files alone")

    class WaitingLearner(FakeLearner):
        async def join_group(self, actor: str) -> None:
            await asyncio.Event().wait()

    with pytest.raises(EngineError, match="files alone"):
        await join_groups({"actor-0": FileActor()}, WaitingLearner(), timeout_s=5)


@pytest.mark.parametrize(
    "manifest",
    [
        SENT,
        Manifest(version=1, step=1, path="/dev/shm/a", num_bytes=8, checksum="ab"),
        Manifest(
            version=1,
            step=1,
            path="/dev/shm/a",
            num_bytes=8,
            checksum="ab",
            adapter=Adapter(rank=8, alpha=16, target_modules=["q_proj"]),
        ),
    ],
)
def test_a_manifest_crosses_processes_whole(manifest: Manifest) -> None:
    report = StepReport(step=1, version=0, manifest=manifest, metrics={}, busy=[])
    assert decode_report(encode(report)).manifest == manifest


def test_a_manifest_of_earlier_files_is_read() -> None:
    text = b'{"format":1,"version":4,"step":9,"path":"/dev/shm/a","num_bytes":8,"checksum":"ab"}'
    manifest = msgspec.json.decode(text, type=Manifest)
    assert manifest == Manifest(version=4, step=9, path="/dev/shm/a", num_bytes=8, checksum="ab")
    assert not manifest.is_sent


NCCL = [
    'weights.transport="nccl"',
    'engine.kind="vllm"',
    "actors.num_gpus=1",
    "learner.num_gpus=1",
    "eval.every=0",
    "cluster.address=auto",  # so that nothing is looked for on this machine
]


def test_the_recipe_of_the_readme_is_taken(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    _, _, section = readme.partition("### On GPUs\n")
    first, *_ = re.findall(r"(?:^(?: {4}.*)?\n)+", section[section.index("    extends") :], re.M)
    recipe = tmp_path / "gpus.toml"
    recipe.write_text(textwrap.dedent(first).replace('"local.toml"', f'"{CONFIGS / "local.toml"}"'))
    config = load([str(recipe), "cluster.address=auto"])
    check_engine(config)
    assert config.weights.transport == "nccl" and config.engine.vllm.tensor_parallel == 2


def test_nccl_between_gpus_is_taken() -> None:
    check_engine(load([BASICS, *NCCL]))
    check_engine(load([BASICS, *NCCL, "engine.vllm.tensor_parallel=4", "actors.num_gpus=4"]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (['engine.kind="local"'], r"engine\.kind='local': set engine\.kind=\"vllm\""),
        (["actors.num_gpus=0"], r"actors\.num_gpus=0: set actors\.num_gpus=1 or more"),
        (["actors.num_gpus=0.5"], r"actors\.num_gpus=0\.5: set"),
        (["learner.num_gpus=0"], r"learner\.num_gpus=0: set learner\.num_gpus=1"),
        (
            ["eval.every=5", 'eval.sets.a.envs=["sum_list"]'],
            r"eval\.every=5 .*: set eval\.every=0, or weights\.transport=\"file\"",
        ),
        (["weights.delta=true"], r"weights: delta=true is about weights that are carried"),
        (["engine.vllm.lora_rank=8", "learner.steps=0"], r"lora_rank=8 .*: set it to 0"),
        (["engine.vllm.arguments.pipeline_parallel_size=2"], r"pipeline_parallel_size .*leave it"),
    ],
)
def test_nccl_is_refused_with_the_cure(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_engine(load([BASICS, *NCCL, *settings]))


def test_adapters_are_refused_while_the_learner_trains_all_weights() -> None:
    settings = ['engine.kind="vllm"', "engine.vllm.lora_rank=8", "cluster.address=auto"]
    with pytest.raises(ConfigError, match=r"set engine\.vllm\.lora_rank=0"):
        check_engine(load([BASICS, *settings]))
    check_engine(load([BASICS, *settings, "learner.steps=0"]))
