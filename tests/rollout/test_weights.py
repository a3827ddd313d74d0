"""Weights that change between two steps of the embedded engine, and what its rows keep.

What every engine does is in `test_engine_updates`.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from configs.schema import EngineSection
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.engine_local import LocalEngine
from rollout.model import load_model
from rollout.types import Sampling, Span
from rollout.weights import Manifest
from tests.engines import assert_close, continued, ragged
from tests.models import plain_logprobs, publish, tiny_qwen3

VOCAB = 64
CONTEXT = 128

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return tiny_qwen3(folder / "v0", vocab_size=VOCAB, seed=0)


@pytest.fixture(scope="module")
def models(folder: Path, checkpoint: Path) -> list[PreTrainedModel]:
    """Three versions of one architecture."""
    paths = [checkpoint, *(tiny_qwen3(folder / f"v{i}", seed=i) for i in (1, 2))]
    return [load_model(path, "float32") for path in paths]


@pytest.fixture(scope="module")
def manifests(folder: Path, models: list[PreTrainedModel]) -> list[Manifest]:
    return [
        publish(folder / f"weights_{version}", model.state_dict(), version)
        for version, model in enumerate(models)
    ]


async def driven(checkpoint: Path, **section: Any) -> LocalEngine:
    """An engine without a thread: the test decides what happens between which steps."""
    return await LocalEngine.start(
        checkpoint,
        dtype="float32",
        section=EngineSection(**section),
        max_context_tokens=CONTEXT,
        is_threaded=False,
    )


def step(engine: LocalEngine, count: int) -> None:
    engine.take_mail()
    for _ in range(count):
        engine.step()


async def update(engine: LocalEngine, manifest: Manifest, mode: UpdateMode) -> None:
    """Apply an update between two steps."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(engine.update_weights(manifest, mode))
        while not task.done():
            engine.take_mail()
            engine.apply_update()
            await asyncio.sleep(0)
    assert task.result().version == manifest.version == engine.version


async def drain(engine: LocalEngine, tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Step until all `tasks` are done."""
    while not all(task.done() for task in tasks):
        step(engine, 1)
        await asyncio.sleep(0)


async def ask_all(
    engine: LocalEngine, tasks: asyncio.TaskGroup, prompts: list[list[int]], max_tokens: int
) -> list[asyncio.Task[Generation]]:
    asked = [
        tasks.create_task(engine.generate(prompt, Sampling(max_tokens=max_tokens, seed=i)))
        for i, prompt in enumerate(prompts)
    ]
    await asyncio.sleep(0)
    return asked


async def test_recompute_gives_each_token_its_own_versions_logprob(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint)
    prompts = ragged(5)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, prompts, 20)
        step(engine, 6)
        await update(engine, manifests[1], UpdateMode.RECOMPUTE)
        step(engine, 7)
        await update(engine, manifests[2], UpdateMode.RECOMPUTE)
        await drain(engine, asked)
    stats = engine.stats()
    await engine.close()
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert reply.spans == [Span(0, 0, 6), Span(1, 6, 13), Span(2, 13, 20)]
        tokens = reply.token_ids.tolist()
        for span in reply.spans:
            part = slice(span.start, span.end)
            expected = plain_logprobs(models[span.version], prompt, tokens)[part]
            assert_close(reply.logprobs[part], expected)
    lengths = sum(len(prompt) for prompt in prompts)
    # The token sampled last is not computed yet when the weights change.
    assert stats.recomputed_tokens == 2 * lengths + 5 * (5 + 12)


async def test_keep_goes_on_with_the_old_cache(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint)
    prompts = ragged(4)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, prompts, 12)
        step(engine, 5)
        await update(engine, manifests[1], UpdateMode.KEEP)
        await drain(engine, asked)
    stats = engine.stats()
    await engine.close()
    # Rows filled by two versions are nobody's prefix.
    assert (stats.cached_rows, stats.recomputed_tokens) == (0, 0)
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert reply.spans == [Span(0, 0, 5), Span(1, 5, 12, True)]
        ids = [*prompt, *reply.token_ids.tolist()]
        expected = continued(models[0], models[1], ids, first=len(prompt), switch=len(prompt) + 5)
        assert_close(reply.logprobs, expected)


async def test_drain_lets_running_requests_finish_and_waiting_ones_wait(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint)
    prompts = ragged(4)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, prompts[:2], 10)
        step(engine, 3)
        task = tasks.create_task(engine.update_weights(manifests[1], UpdateMode.DRAIN))
        await engine.is_staged.wait()
        # There is room for these, but nothing is admitted before the new weights are in.
        asked += await ask_all(engine, tasks, prompts[2:], 10)
        step(engine, 7)
        await asyncio.sleep(0)
        assert (engine.version, engine.stats().running, engine.stats().waiting) == (0, 0, 2)
        await drain(engine, [*asked, task])
    await engine.close()
    for i, (prompt, one) in enumerate(zip(prompts, asked, strict=True)):
        version = 0 if i < 2 else 1
        reply = one.result()
        assert reply.spans == [Span(version, 0, 10)]
        assert_close(
            reply.logprobs, plain_logprobs(models[version], prompt, reply.token_ids.tolist())
        )


async def test_closing_ends_an_update_that_waits(
    checkpoint: Path, manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, [[1]], 50)
        step(engine, 1)
        task = tasks.create_task(refused(engine, manifests[1]))
        await engine.is_staged.wait()
        step(engine, 1)
        await engine.close()
    assert asked[0].result().stop is EngineStop.ABORTED
    assert "closed" in task.result()


async def refused(engine: LocalEngine, manifest: Manifest) -> str:
    with pytest.raises(EngineError) as caught:
        await engine.update_weights(manifest, UpdateMode.DRAIN)
    return str(caught.value)
