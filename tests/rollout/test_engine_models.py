"""Every kind of engine on other models: architectures, tied heads, bfloat16; how it starts and ends."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from torch import Tensor

from rollout.engine import Engine, EngineError, EngineStop, Generation, UpdateMode
from rollout.types import Sampling
from rollout.weights import WeightsError
from tests.engines import (
    COMPUTING,
    CONTEXT,
    VOCAB,
    Served,
    ask,
    each_kind,
    needs_vllm,
    serving,
    start,
    words,
)
from tests.models import plain_logprobs, tiny_llama, tiny_qwen2, tiny_qwen3

# On the loop of the engines that they share.
pytestmark = pytest.mark.asyncio(loop_scope="session")

MODELS = {
    "qwen3-tied": partial(tiny_qwen3, head_dim=64, tied=True),
    "qwen2": partial(tiny_qwen2, head_dim=32, tied=False),
    "llama": partial(tiny_llama, head_dim=32),
}
MAX_RUNNING = 8
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

torch.set_num_threads(1)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="session",
    params=[
        *(pytest.param(("local", name), id=f"local-{name}") for name in MODELS),
        *(pytest.param(("vllm", name), id=f"vllm-{name}", marks=needs_vllm) for name in MODELS),
        pytest.param(("http", "qwen3-tied"), id="http-qwen3-tied", marks=needs_vllm),
    ],
)
async def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """An engine on one of three models of an architecture."""
    kind, name = request.param
    folder = tmp_path_factory.mktemp(f"{kind}_{name}")
    make = partial(MODELS[name], vocab_size=VOCAB, max_positions=CONTEXT)
    paths = [make(folder / f"model_{seed}", seed=seed) for seed in range(3)]
    async with serving(kind, folder, paths, max_running=MAX_RUNNING, max_cached=6) as one:
        yield one


async def converse(
    engine: Engine, prompt: list[int], *, seed: int, turns: int, temperature: float = 1.0
) -> list[tuple[list[int], Generation]]:
    """A conversation: each prompt is the last one, its reply and a few new tokens."""
    rng = np.random.default_rng(seed)
    said: list[tuple[list[int], Generation]] = []
    for turn in range(turns):
        how = Sampling(
            max_tokens=int(rng.integers(1, 9)), temperature=temperature, seed=seed * 10 + turn
        )
        reply = await engine.generate(prompt, how)
        said.append((prompt, reply))
        prompt = [*prompt, *reply.token_ids.tolist(), *words(rng, int(rng.integers(1, 12)))]
    return said


async def test_logprobs_equal_a_plain_forward_over_turns(variant: Served) -> None:
    engine, rng = variant.engine, np.random.default_rng(0)
    was, before = await variant.seen(), engine.stats()
    # Groups of four share a prompt; lengths differ between groups.
    prompts = [words(rng, int(rng.integers(1, 90))) for _ in range(6)]
    async with asyncio.TaskGroup() as tasks:
        playing = [
            tasks.create_task(
                converse(engine, prompts[i // 4], seed=i, turns=3, temperature=0.7 + i % 2)
            )
            for i in range(24)
        ]
    said = [task.result() for task in playing]
    total = sum(len(reply.token_ids) for turns in said for _, reply in turns)
    await variant.until(lambda seen: seen.sampled_tokens == was.sampled_tokens + total)
    stats = engine.stats()
    for i, turns in enumerate(said):
        for prompt, reply in turns:
            variant.assert_exact(prompt, reply, temperature=0.7 + i % 2)
    asked = stats.prompt_tokens - before.prompt_tokens
    assert asked == sum(len(prompt) for turns in said for prompt, _ in turns)
    assert stats.prefix_hit_tokens - before.prefix_hit_tokens > asked / 5
    assert engine.num_parameters == variant.models[0].num_parameters()


def without_the_head(tensors: dict[str, Tensor]) -> None:
    del tensors[HEAD]


def with_a_head_of_its_own(tensors: dict[str, Tensor]) -> None:
    tensors[HEAD] = torch.zeros_like(tensors[EMBEDDINGS])


async def test_an_update_changes_the_head_too(variant: Served) -> None:
    engine = variant.engine
    is_tied = variant.models[0].config.tie_word_embeddings
    # A tied head may be published, or not.
    for which, change in ((1, None), (2, without_the_head if is_tied else None)):
        manifest = await asyncio.to_thread(partial(variant.publish, which, change=change))
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        reply = await engine.generate([5, 6], Sampling(max_tokens=20))
        assert [span.version for span in reply.spans] == [manifest.version]
        variant.assert_exact([5, 6], reply)
    if is_tied:
        changed = partial(variant.publish, 0, change=with_a_head_of_its_own)
        with pytest.raises(WeightsError, match="tied"):
            await engine.update_weights(await asyncio.to_thread(changed), UpdateMode.RECOMPUTE)
        reply = await engine.generate([5, 6], Sampling(max_tokens=20))
        assert [span.version for span in reply.spans] == [manifest.version]
        variant.assert_exact([5, 6], reply)


# The last one on each of these engines.
async def test_closing_returns_what_there_is(
    variant: Served, request: pytest.FixtureRequest
) -> None:
    engine, version = variant.engine, variant.engine.version
    manifest = await asyncio.to_thread(variant.publish, 1)
    prompts = [[1 + i] for i in range(MAX_RUNNING + 1)]
    # Whatever goes on: on some of the engines, an update that waits.
    modes = [UpdateMode.DRAIN] if "llama" in request.node.name else []
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, CONTEXT)  # none ends before the engine does
        await variant.until(lambda seen: (seen.running, seen.waiting) == (MAX_RUNNING, 1))
        await variant.sampling(2 * MAX_RUNNING)
        drain = asyncio.gather(
            *(engine.update_weights(manifest, mode) for mode in modes), return_exceptions=True
        )
        await variant.sampling(4 * MAX_RUNNING)
        await engine.close()
        ends = await drain
    assert all(isinstance(end, EngineError) and "closed" in str(end) for end in ends)
    replies = [task.result() for task in asked]
    assert {reply.stop for reply in replies} == {EngineStop.ABORTED}
    for prompt, reply in zip(prompts, replies, strict=True):
        is_whole = variant.replies_come_whole or prompt == prompts[-1]
        assert (len(reply.token_ids) == 0) == is_whole
        assert len(reply.token_ids) < CONTEXT - len(prompt)
        variant.assert_exact(prompt, reply)
    await engine.close()
    assert engine.pids == []
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([1], Sampling(max_tokens=1))
    with pytest.raises(EngineError, match="closed"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert engine.version == version and engine.stats().running == 0


@pytest.mark.parametrize("kind", COMPUTING)
async def test_bfloat16_agrees_with_a_plain_forward(kind: str, tmp_path: Path) -> None:
    make = partial(tiny_qwen3, vocab_size=VOCAB, max_positions=CONTEXT, dtype=torch.bfloat16)
    path = await asyncio.to_thread(make, tmp_path / "model")
    rng = np.random.default_rng(2)
    prompts = [words(rng, 5 + i) for i in range(8)]
    async with (
        serving(kind, tmp_path, [path], dtype="bfloat16") as served,
        asyncio.TaskGroup() as tasks,
    ):
        asked = ask(served.engine, tasks, prompts, 40)
        await asyncio.wait(asked)
    gaps: list[float] = []
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        expected = plain_logprobs(served.model, prompt, reply.token_ids.tolist())
        gaps += (expected - torch.from_numpy(reply.logprobs)).tolist()
    assert np.abs(gaps).mean() < 2e-2
    # The k3 estimate of the divergence, http://joschu.net/blog/kl-approx.html.
    assert np.mean(np.expm1(gaps) - gaps) < 5e-4


@each_kind
async def test_a_missing_model_is_an_engine_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json"):
        await start(kind, tmp_path)


@each_kind
async def test_a_context_beyond_the_model_is_refused(kind: str, tmp_path: Path) -> None:
    path = await asyncio.to_thread(tiny_qwen3, tmp_path / "model")
    with pytest.raises(EngineError, match="512 positions"):
        await start(kind, path, context=513)
