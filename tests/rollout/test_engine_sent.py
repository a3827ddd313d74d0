"""Weights that are sent to real vLLM: everything but NCCL itself, for which a TCP store stands in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from configs.schema import EngineSection, VllmSection
from learner.publish import named_weights
from rollout.actor import Joins
from rollout.engine import EngineError, Generation, UpdateMode
from rollout.engine_vllm import VllmEngine
from rollout.model import load_model
from rollout.types import Sampling
from rollout.vllm_setup import check_installed, import_api
from rollout.weights import Manifest, WeightsError, newest_version
from tests.models import plain_logprobs, tiny_qwen3

if TYPE_CHECKING:
    pass


def _missing() -> str:
    try:
        check_installed()
    except EngineError as error:
        return str(error)
    return ""


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(_missing()), reason=_missing()),
    # Started anew or under load it takes 20 s each time.
    pytest.mark.timeout(300),
]

NAME = "actor-0"
PROMPT = [3, 1, 4, 1, 5]
# Little, so that a version goes in several buffers; a larger tensor would be a warning.
BUFFER_BYTES = 20_000

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
        self.sender: Sender = Sender(
            log=self.log,
            num_workers=1,
            buffer_bytes=BUFFER_BYTES,
            num_buffers=2,
            init_info=StoreInit,
        )

    def publish(self, version: int) -> Manifest:
        """The weights of the model with that number."""
        weights = named_weights(self.models[version])
        return self.sender.publish(weights, version=version, step=version)


@asynccontextmanager
async def serving(
    folder: Path, *, tied: bool = False, timeout_s: float = 60.0
) -> AsyncIterator[tuple[VllmEngine, Learner]]:
    """An engine, and a learner that it has met."""
    learner = await asyncio.to_thread(Learner, folder, tied=tied)
    engine = await VllmEngine.start(
        folder / "model_0",
        dtype="float32",
        section=EngineSection(
            kind="vllm",
            max_running=8,
            vllm=VllmSection(arguments=learner.arguments, update_timeout_s=timeout_s),
        ),
        max_context_tokens=256,
        log=folder / "engine.log",
    )
    try:
        assert isinstance(engine, Joins)
        endpoint = await asyncio.to_thread(learner.sender.open, NAME, "127.0.0.1")
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.join(endpoint))
            group.create_task(asyncio.to_thread(learner.sender.join, NAME))
        yield engine, learner
    finally:
        await engine.close()
        learner.sender.close()


async def deliver(
    engine: VllmEngine, learner: Learner, version: int, mode: UpdateMode = UpdateMode.RECOMPUTE
) -> None:
    manifest = await asyncio.to_thread(learner.publish, version)
    async with asyncio.TaskGroup() as group:
        group.create_task(engine.update_weights(manifest, mode))
        group.create_task(asyncio.to_thread(learner.sender.send, NAME, version))


def assert_exact(models: list[PreTrainedModel], reply: Generation) -> None:
    """Each span has the log-probs of a plain forward of its version."""
    tokens = reply.token_ids.tolist()
    assert reply.spans[0].start == 0 and reply.spans[-1].end == len(tokens)
    for span in reply.spans:
        expected = plain_logprobs(models[span.version], PROMPT, tokens)[span.start : span.end]
        found = reply.logprobs[span.start : span.end]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


async def until_sampling(engine: VllmEngine, tokens: int) -> None:
    while engine.stats().sampled_tokens < tokens:  # noqa: ASYNC110 nobody tells
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("tied", [False, True])
async def test_versions_are_sent_while_requests_run(tmp_path: Path, tied: bool) -> None:
    async with serving(tmp_path, tied=tied) as (engine, learner):
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(engine.generate(PROMPT, Sampling(max_tokens=200)))
                for _ in range(4)
            ]
            await until_sampling(engine, 40)
            await deliver(engine, learner, 1)
            await until_sampling(engine, 240)
            await deliver(engine, learner, 2)
        replies = [task.result() for task in asked]
        later = await engine.generate(PROMPT, Sampling(max_tokens=20))
        assert engine.version == 2
    for reply in replies:
        assert [span.version for span in reply.spans] == [0, 1, 2]
        await asyncio.to_thread(assert_exact, learner.models, reply)
    assert [span.version for span in later.spans] == [2]
    await asyncio.to_thread(assert_exact, learner.models, later)
    assert await asyncio.to_thread(newest_version, learner.log) == 2


async def test_a_sender_that_never_comes_costs_no_request_and_no_version(tmp_path: Path) -> None:
    async with serving(tmp_path, timeout_s=5) as (engine, learner):
        pids = engine.pids
        manifest = await asyncio.to_thread(learner.publish, 1)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(engine.generate(PROMPT, Sampling(max_tokens=200)))
            await until_sampling(engine, 10)
            with pytest.raises(EngineError, match=r"not done within .*update_timeout_s=5"):
                await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        assert engine.version == 0
        assert engine.pids and not set(engine.pids) & set(pids)
        assert [span.version for span in asked.result().spans] == [0]
        await asyncio.to_thread(assert_exact, learner.models, asked.result())
        # Whoever was started anew is in no group, and says so before it touches anything.
        again = await asyncio.to_thread(learner.publish, 2)
        with pytest.raises(EngineError, match="started anew after it had met the learner"):
            await engine.update_weights(again, UpdateMode.RECOMPUTE)
        await engine.generate(PROMPT, Sampling(max_tokens=2))


async def test_an_engine_that_dies_with_sent_weights_says_that_they_are_gone(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (engine, learner):
        await deliver(engine, learner, 1)
        assert engine._core is not None
        engine._core.kill()
        with pytest.raises(EngineError, match="version 1 was sent, and is in no file to load"):
            await engine.generate(PROMPT, Sampling(max_tokens=20))


async def test_weights_of_another_model_are_refused_before_anything_is_touched(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as (engine, learner):
        manifest = await asyncio.to_thread(learner.publish, 1)
        first, *others = manifest.tensors
        wrong = msgspec.structs.replace(first, shape=[*first.shape, 2])
        for tensors in ([wrong, *others], others, [*manifest.tensors, wrong]):
            changed = msgspec.structs.replace(manifest, tensors=tensors)
            with pytest.raises(WeightsError, match=first.name):
                await engine.update_weights(changed, UpdateMode.RECOMPUTE)
        assert engine.version == 0
        reply = await engine.generate(PROMPT, Sampling(max_tokens=20))
        await asyncio.to_thread(assert_exact, learner.models, reply)


async def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    learner = await asyncio.to_thread(Learner, tmp_path, tied=False)
    await asyncio.to_thread(learner.publish, 1)
    with pytest.raises(WeightsError, match="those of 1"):
        learner.sender.send(NAME, 2)
    with pytest.raises(WeightsError, match="never joined"):
        learner.sender.send(NAME, 1)
    with pytest.raises(WeightsError, match="strictly increase"):
        await asyncio.to_thread(learner.publish, 1)


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
