"""Weights that are sent to real vLLM: everything but NCCL itself, for which a TCP store stands in."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import torch
from transformers import PreTrainedModel

from configs.schema import EngineSection, VllmSection
from learner.publish import named_weights
from rollout.actor import Joins
from rollout.engine import Engine, EngineError, Generation, UpdateMode
from rollout.model import load_model
from rollout.types import Sampling, Span
from rollout.vllm_setup import import_api
from rollout.weights import Manifest, WeightsError, newest_version
from tests.engines import assert_close, assert_covered, needs_vllm, sampling, started
from tests.models import plain_logprobs, tiny_qwen3

pytestmark = needs_vllm
on_shared_loop = pytest.mark.asyncio(loop_scope="session")

NAME = "actor-0"
PROMPT = [3, 1, 4, 1, 5]
# Little, so that a version goes in several buffers; a larger tensor would be a warning.
BUFFER_BYTES = 20_000
TIMEOUT_S = 6.0

torch.set_num_threads(1)


class Learner:
    """Weights on their way to an engine: `train` makes others of them, `sender` sends them."""

    def __init__(self, folder: Path, *, tied: bool) -> None:
        # In a run the learner has a process of its own; here vLLM is imported as engines need it.
        import_api(EngineSection(kind="vllm"))
        from learner.nccl import Sender
        from tests.sent_weights import ARGUMENTS, StoreInit

        self.arguments = ARGUMENTS
        self.models = [
            load_model(tiny_qwen3(folder / f"model_{seed}", seed=seed, tied=tied), "float32")
            for seed in range(3)
        ]
        self.log = folder / "version.json"
        self.version = 0
        self.sender: Sender = Sender(
            log=self.log,
            num_workers=1,
            buffer_bytes=BUFFER_BYTES,
            num_buffers=2,
            init_info=StoreInit,
        )

    def publish(self) -> Manifest:
        """A next version: the weights of a next model, and of the first after the last."""
        self.version += 1
        weights = named_weights(self.model(self.version))
        return self.sender.publish(weights, version=self.version, step=self.version)

    def model(self, version: int) -> PreTrainedModel:
        return self.models[version % len(self.models)]


class Met:
    """An engine, and a learner that it has met."""

    def __init__(self, engine: Engine, learner: Learner) -> None:
        self.engine = engine
        self.learner = learner

    async def meet(self) -> None:
        assert isinstance(self.engine, Joins)
        endpoint = await asyncio.to_thread(self.learner.sender.open, NAME, "127.0.0.1")
        async with asyncio.TaskGroup() as group:
            group.create_task(self.engine.join(endpoint))
            group.create_task(asyncio.to_thread(self.learner.sender.join, NAME))

    async def deliver(self) -> int:
        """Serve a next version, which is returned."""
        manifest = await asyncio.to_thread(self.learner.publish)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.engine.update_weights(manifest, UpdateMode.RECOMPUTE))
            group.create_task(asyncio.to_thread(self.learner.sender.send, NAME, manifest.version))
        return manifest.version

    def assert_exact(self, reply: Generation) -> None:
        """Each span has the log-probs of a plain forward of its version."""
        tokens = reply.token_ids.tolist()
        assert_covered(reply)
        for span in reply.spans:
            part = slice(span.start, span.end)
            expected = plain_logprobs(self.learner.model(span.version), PROMPT, tokens)[part]
            assert_close(reply.logprobs[part], expected)


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=[False, True], ids=["untied", "tied"]
)
async def met(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Met]:
    folder = tmp_path_factory.mktemp("met")
    learner = await asyncio.to_thread(Learner, folder, tied=request.param)
    options = VllmSection(arguments=learner.arguments, update_timeout_s=TIMEOUT_S)
    async with started("vllm", folder / "model_0", max_running=8, vllm=options) as engine:
        one = Met(engine, learner)
        await one.meet()
        # What an engine makes for its first request is not of the test that comes first.
        await engine.generate(PROMPT, Sampling(max_tokens=1))
        yield one
    learner.sender.close()


# The first one: of a version that was sent no other engine can be started.
@on_shared_loop
@pytest.mark.parametrize("met", [False], indirect=True, ids=["untied"])
async def test_a_sender_that_never_comes_costs_no_request_and_no_version(met: Met) -> None:
    engine, pids = met.engine, met.engine.pids
    manifest = await asyncio.to_thread(met.learner.publish)
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(engine.generate(PROMPT, Sampling(max_tokens=200)))
        await sampling(engine, 10, since=engine.stats().sampled_tokens)
        with pytest.raises(EngineError, match=rf"not done within .*timeout_s={TIMEOUT_S:g}"):
            await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert engine.version == 0
    assert engine.pids and not set(engine.pids) & set(pids)
    assert asked.result().spans == [Span(0, 0, 200)]
    await asyncio.to_thread(met.assert_exact, asked.result())
    # Whoever was started anew is in no group, and says so before it touches anything.
    again = await asyncio.to_thread(met.learner.publish)
    with pytest.raises(EngineError, match="started anew after it had met the learner"):
        await engine.update_weights(again, UpdateMode.RECOMPUTE)
    await engine.generate(PROMPT, Sampling(max_tokens=2))
    await met.meet()


@on_shared_loop
async def test_versions_are_sent_while_requests_run(met: Met) -> None:
    engine, before = met.engine, met.engine.version
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(engine.generate(PROMPT, Sampling(max_tokens=200))) for _ in range(4)
        ]
        await sampling(engine, 40, since=engine.stats().sampled_tokens)
        first = await met.deliver()
        await sampling(engine, 200, since=engine.stats().sampled_tokens)
        second = await met.deliver()
    later = await engine.generate(PROMPT, Sampling(max_tokens=20))
    assert engine.version == second
    for task in asked:
        assert [span.version for span in task.result().spans] == [before, first, second]
        await asyncio.to_thread(met.assert_exact, task.result())
    assert [span.version for span in later.spans] == [second]
    await asyncio.to_thread(met.assert_exact, later)
    assert await asyncio.to_thread(newest_version, met.learner.log) == second


@on_shared_loop
async def test_weights_of_another_model_are_refused_before_anything_is_touched(met: Met) -> None:
    engine, version = met.engine, met.engine.version
    manifest = await asyncio.to_thread(met.learner.publish)
    first, *others = manifest.tensors
    wrong = msgspec.structs.replace(first, shape=[*first.shape, 2])
    for tensors in ([wrong, *others], others, [*manifest.tensors, wrong]):
        changed = msgspec.structs.replace(manifest, tensors=tensors)
        with pytest.raises(WeightsError, match=first.name):
            await engine.update_weights(changed, UpdateMode.RECOMPUTE)
    assert engine.version == version
    reply = await engine.generate(PROMPT, Sampling(max_tokens=20))
    assert reply.spans == [Span(version, 0, 20)]
    await asyncio.to_thread(met.assert_exact, reply)


# The last one on each of these engines.
@on_shared_loop
async def test_an_engine_that_dies_with_sent_weights_says_that_they_are_gone(met: Met) -> None:
    await met.deliver()
    for pid in met.engine.pids:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(
        EngineError, match=f"version {met.engine.version} was sent, and is in no file"
    ):
        await met.engine.generate(PROMPT, Sampling(max_tokens=20))


async def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    learner = await asyncio.to_thread(Learner, tmp_path, tied=False)
    await asyncio.to_thread(learner.publish)
    with pytest.raises(WeightsError, match="those of 1"):
        learner.sender.send(NAME, 2)
    with pytest.raises(WeightsError, match="never joined"):
        learner.sender.send(NAME, 1)
    learner.version = 0
    with pytest.raises(WeightsError, match="strictly increase"):
        await asyncio.to_thread(learner.publish)


def test_other_learner_ranks_only_take_part_in_gathering(tmp_path: Path) -> None:
    from learner.nccl import Sender
    from tests.sent_weights import StoreInit

    gathered = []

    class Sharded(torch.Tensor):
        """What a sharded tensor has: `full_tensor`, which all ranks call in the same order."""

        def detach(self) -> "Sharded":
            return self

        def full_tensor(self) -> torch.Tensor:
            gathered.append(tuple(self.shape))
            return torch.zeros(self.shape)

    sender = Sender(
        log=tmp_path / "version.json",
        num_workers=1,
        buffer_bytes=64,
        num_buffers=2,
        rank=1,
        init_info=StoreInit,
    )
    weights = {f"layer.{i}": torch.zeros(2, i + 1).as_subclass(Sharded) for i in range(3)}
    manifest = sender.publish(weights, version=1, step=1)
    assert not gathered
    assert [one.shape for one in manifest.tensors] == [[2, 1], [2, 2], [2, 3]]
    sender.join(NAME)
    sender.send(NAME, 1)
    assert gathered == [(2, 1), (2, 2), (2, 3)]
    assert not newest_version(tmp_path / "version.json")
