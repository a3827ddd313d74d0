"""Weights that change in flight: each mode's exactness, refusals, and what the rows keep."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from configs.schema import EngineSection
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.engine_local import LocalEngine
from rollout.model import load_model
from rollout.types import Sampling, Span
from rollout.weights import Manifest, WeightsError, read_tensors
from tests.models import plain_logprobs, publish, tiny_qwen2, tiny_qwen3

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


def ragged(count: int) -> list[list[int]]:
    rng = np.random.default_rng(count)
    return [rng.integers(0, VOCAB, 3 + 4 * i).tolist() for i in range(count)]


def assert_close(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


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


def continued(
    old: PreTrainedModel, new: PreTrainedModel, ids: list[int], *, first: int, switch: int
) -> Tensor:
    """Log-probs of ids[first:]; `new` takes over `old`'s cache for ids[switch:]."""
    cache = DynamicCache()
    with torch.inference_mode():
        # `old` predicted ids[switch - 1] and never saw it.
        before = old(
            input_ids=torch.tensor([ids[: switch - 1]]), past_key_values=cache, use_cache=True
        )
        after = new(
            input_ids=torch.tensor([ids[switch - 1 :]]), past_key_values=cache, use_cache=True
        )
    logits = torch.cat([before.logits[0], after.logits[0]])[first - 1 : -1]
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[first:])[:, None])[:, 0]


async def test_recompute_after_keep_is_exact_again(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, [[1, 2, 3]], 12)
        step(engine, 4)
        await update(engine, manifests[1], UpdateMode.KEEP)
        step(engine, 4)
        await update(engine, manifests[2], UpdateMode.RECOMPUTE)
        await drain(engine, asked)
    await engine.close()
    reply = asked[0].result()
    assert reply.spans == [Span(0, 0, 4), Span(1, 4, 8, True), Span(2, 8, 12)]
    expected = plain_logprobs(models[2], [1, 2, 3], reply.token_ids.tolist())
    assert_close(reply.logprobs[8:], expected[8:])


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


async def test_a_drain_that_is_given_up_lets_requests_in_again(
    checkpoint: Path, manifests: list[Manifest]
) -> None:
    engine = await driven(checkpoint, max_running=1)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, [[1], [2]], 6)
        step(engine, 1)
        task = tasks.create_task(engine.update_weights(manifests[1], UpdateMode.DRAIN))
        await engine.is_staged.wait()
        step(engine, 1)
        task.cancel()
        await asyncio.sleep(0)
        await drain(engine, asked)
    assert engine.version == 0
    await engine.close()


async def test_a_prefix_is_reused_within_a_version_and_not_across(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await LocalEngine.start(
        checkpoint, dtype="float32", section=EngineSection(), max_context_tokens=CONTEXT
    )
    prompt, sampling = list(range(40)), Sampling(max_tokens=4)
    await engine.generate(prompt, sampling)
    await engine.generate(prompt, sampling)
    assert engine.stats().prefix_hit_tokens == 39
    for version, mode in ((1, UpdateMode.RECOMPUTE), (2, UpdateMode.KEEP)):
        report = await engine.update_weights(manifests[version], mode)
        assert report.load_s > 0 and report.stall_s > 0
        assert engine.stats().cached_rows == 0
        hits = engine.stats().prefix_hit_tokens
        reply = await engine.generate(prompt, sampling)
        assert engine.stats().prefix_hit_tokens == hits
        assert reply.spans == [Span(version, 0, 4)]
        expected = plain_logprobs(models[version], prompt, reply.token_ids.tolist())
        assert_close(reply.logprobs, expected)
    await engine.close()


def broken(manifest: Manifest, folder: Path, kind: str) -> Manifest:
    """A next version of `manifest` with one fault."""
    tensors = read_tensors(manifest)
    norm = "model.norm.weight"
    if kind == "shape":
        tensors["model.embed_tokens.weight"] = torch.zeros(VOCAB + 1, 32)
    elif kind == "number type":
        tensors[norm] = tensors[norm].to(torch.bfloat16)
    elif kind == "missing":
        del tensors[norm]
    elif kind == "unknown":
        tensors["model.extra.weight"] = torch.zeros(1)
    fresh = publish(folder / "broken", tensors, 5)
    if kind == "checksum":
        (folder / "broken").write_bytes(b"x" * fresh.num_bytes)
    elif kind == "no file":
        (folder / "broken").unlink()
    elif kind == "version":
        return msgspec.structs.replace(fresh, version=0)
    return fresh


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"embed_tokens.weight as \(65, 32\)"),
        ("number type", "bfloat16"),
        ("missing", "lacks"),
        ("unknown", "extra"),
        ("checksum", "is not the file"),
        ("no file", "No such file"),
        ("version", "not newer"),
    ],
)
async def test_a_refused_update_changes_nothing(
    checkpoint: Path, manifests: list[Manifest], tmp_path: Path, kind: str, message: str
) -> None:
    engine = await driven(checkpoint)
    manifest = await asyncio.to_thread(broken, manifests[1], tmp_path, kind)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, [[1, 2, 3]], 10)
        step(engine, 3)
        with pytest.raises(WeightsError, match=message):
            await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        await drain(engine, asked)
        again = await ask_all(engine, tasks, [[1, 2, 3]], 10)
        await drain(engine, again)
    await engine.close()
    first, second = asked[0].result(), again[0].result()
    assert first.spans == second.spans == [Span(0, 0, 10)]
    assert first.token_ids.tolist() == second.token_ids.tolist()
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-5)


@pytest.mark.parametrize("has_head", [False, True])
async def test_tied_embeddings_change_the_head_too(tmp_path: Path, *, has_head: bool) -> None:
    def prepare() -> tuple[Path, PreTrainedModel, Manifest]:
        path = tiny_qwen2(tmp_path / "old", vocab_size=VOCAB, tied=True)
        model = load_model(tiny_qwen2(tmp_path / "new", seed=1, tied=True), "float32")
        tensors = model.state_dict()
        if not has_head:
            del tensors["lm_head.weight"]
        return path, model, publish(tmp_path / "weights", tensors, 1)

    path, model, manifest = await asyncio.to_thread(prepare)
    engine = await driven(path)
    await update(engine, manifest, UpdateMode.RECOMPUTE)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, [[5, 6]], 8)
        await drain(engine, asked)
    reply = asked[0].result()
    assert_close(reply.logprobs, plain_logprobs(model, [5, 6], reply.token_ids.tolist()))
    tensors = {**model.state_dict(), "lm_head.weight": torch.zeros(VOCAB, 64)}
    torn = await asyncio.to_thread(publish, tmp_path / "torn", tensors, 2)
    with pytest.raises(WeightsError, match="tied"):
        await engine.update_weights(torn, UpdateMode.RECOMPUTE)
    await engine.close()


async def test_updates_under_load_lose_no_request(
    checkpoint: Path, models: list[PreTrainedModel], manifests: list[Manifest]
) -> None:
    engine = await LocalEngine.start(
        checkpoint,
        dtype="float32",
        section=EngineSection(max_running=8, max_cached=4),
        max_context_tokens=CONTEXT,
    )
    prompts = ragged(24)
    async with asyncio.TaskGroup() as tasks:
        asked = await ask_all(engine, tasks, prompts, 30)
        await asked[0]
        await engine.update_weights(manifests[1], UpdateMode.RECOMPUTE)
        await engine.update_weights(manifests[2], UpdateMode.RECOMPUTE)
    await engine.close()
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        tokens = reply.token_ids.tolist()
        assert len(tokens) == min(30, CONTEXT - len(prompt))
        assert reply.stop is EngineStop.LENGTH
        assert [span.start for span in reply.spans] == [0] + [s.end for s in reply.spans[:-1]]
        assert reply.spans[-1].end == len(tokens)
        for span in reply.spans:
            part = slice(span.start, span.end)
            assert_close(
                reply.logprobs[part], plain_logprobs(models[span.version], prompt, tokens)[part]
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
