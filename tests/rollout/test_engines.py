"""What every kind of engine must do: exact log-probs, scheduling, ends of replies, refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import GenerationConfig

from rollout.engine import Engine, EngineError, EngineStop, Generation, UpdateMode
from rollout.model import load_model
from rollout.types import Sampling
from tests.engines import (
    CONTEXT,
    END_TOKEN,
    KINDS,
    VOCAB,
    Served,
    ask,
    assert_exact,
    checkpoint,
    each_kind,
    ragged,
    sampling,
    start,
    started,
    until,
    words,
)
from tests.lost_tasks import no_lost_tasks
from tests.models import plain_logprobs, publish, tiny_llama, tiny_qwen2, tiny_qwen3

# One engine for most tests: some kinds take 20 s to start.
pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_RUNNING = 16

torch.set_num_threads(1)


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def no_lost_task() -> AsyncIterator[None]:
    """On the loop that these tests share."""
    async with no_lost_tasks():
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    path = checkpoint(folder / "v0")
    plain = load_model(path, "float32")
    async with started(request.param, path, max_running=MAX_RUNNING, max_cached=8) as engine:
        # What an engine makes for its first request is not of the test that comes first.
        await engine.generate([1], Sampling(max_tokens=1))
        yield Served(engine, folder, [plain])


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


@each_kind
@pytest.mark.parametrize(
    "make",
    [
        partial(tiny_qwen3, head_dim=64, tied=True),
        partial(tiny_qwen2, head_dim=32, tied=False),
        partial(tiny_llama, head_dim=32),
    ],
    ids=["qwen3-tied", "qwen2", "llama"],
)
async def test_logprobs_equal_a_plain_forward_over_turns(
    kind: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    path = await asyncio.to_thread(make, tmp_path / "model", vocab_size=VOCAB)
    plain = await asyncio.to_thread(load_model, path, "float32")
    rng = np.random.default_rng(0)
    # Groups of four share a prompt; lengths differ between groups.
    prompts = [words(rng, int(rng.integers(1, 90))) for _ in range(6)]
    async with started(kind, path, max_running=8, max_cached=6, context=256) as engine:
        async with asyncio.TaskGroup() as tasks:
            playing = [
                tasks.create_task(
                    converse(engine, prompts[i // 4], seed=i, turns=3, temperature=0.7 + i % 2)
                )
                for i in range(24)
            ]
        said = [task.result() for task in playing]
        total = sum(len(reply.token_ids) for turns in said for _, reply in turns)
        await until(lambda: engine.stats().sampled_tokens == total)
        stats = engine.stats()
    for i, turns in enumerate(said):
        for prompt, reply in turns:
            assert_exact(plain, prompt, reply, temperature=0.7 + i % 2)
    assert stats.prompt_tokens == sum(len(prompt) for turns in said for prompt, _ in turns)
    assert stats.prefix_hit_tokens > stats.prompt_tokens / 5
    assert engine.num_parameters == plain.num_parameters()


@each_kind
async def test_bfloat16_agrees_with_a_plain_forward(kind: str, tmp_path: Path) -> None:
    make = partial(tiny_qwen3, vocab_size=VOCAB, dtype=torch.bfloat16)
    path = await asyncio.to_thread(make, tmp_path / "model")
    plain = await asyncio.to_thread(load_model, path, "bfloat16")
    rng = np.random.default_rng(2)
    prompts = [words(rng, 5 + i) for i in range(8)]
    async with started(kind, path, dtype="bfloat16") as engine, asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 40)
        await asyncio.wait(asked)
    gaps: list[float] = []
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        expected = plain_logprobs(plain, prompt, reply.token_ids.tolist())
        gaps += (expected - torch.from_numpy(reply.logprobs)).tolist()
    assert np.abs(gaps).mean() < 2e-2
    # The k3 estimate of the divergence, http://joschu.net/blog/kl-approx.html.
    assert np.mean(np.expm1(gaps) - gaps) < 5e-4


async def test_greedy_equals_generate(served: Served) -> None:
    rng = np.random.default_rng(1)
    prompts = [words(rng, n) for n in (1, 7, 100)]
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, prompts, 12, temperature=0.0)
    model: Any = served.models[0]
    model.generation_config = GenerationConfig()
    for prompt, task in zip(prompts, asked, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert task.result().token_ids.tolist() == expected[0, len(prompt) :].tolist()
        served.assert_exact(prompt, task.result())


async def test_sampling_follows_the_distribution(served: Served) -> None:
    prompt, count = [3, 1, 4], 1500
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, [prompt] * count, 1, temperature=1.5)
    drawn = [int(task.result().token_ids[0]) for task in asked]
    with torch.inference_mode():
        logits = served.models[0](input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / 1.5, dim=-1).numpy()
    found = np.bincount(drawn, minlength=VOCAB) / count
    # Six standard deviations of a frequency.
    assert (np.abs(found - expected) <= 6 * np.sqrt(expected / count) + 1 / count).all()


async def test_more_requests_than_run_together_all_end(served: Served) -> None:
    engine, rng = served.engine, np.random.default_rng(7)
    await until(lambda: engine.stats().running == 0)
    engine.take_busy()
    before = engine.stats()
    prompts = [words(rng, 20) for _ in range(200)]
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(engine.generate(prompt, Sampling(max_tokens=1 + i % 9, seed=i)))
            for i, prompt in enumerate(prompts)
        ]
        await sampling(engine, 1, since=before.sampled_tokens)
        seen = engine.stats()
        assert seen.running <= MAX_RUNNING
        assert seen.waiting > 0
        assert 0 < seen.kv_used_frac <= 1
    assert [len(task.result().token_ids) for task in asked] == [1 + i % 9 for i in range(200)]
    for prompt, task in zip(prompts, asked, strict=True):
        assert task.result().stop is EngineStop.LENGTH
        served.assert_exact(prompt, task.result())
    total = sum(len(task.result().token_ids) for task in asked)
    await until(lambda: engine.stats().sampled_tokens == before.sampled_tokens + total)
    stats = engine.stats()
    assert (stats.version, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.prompt_tokens == before.prompt_tokens + 200 * 20
    assert stats.cpu_s > before.cpu_s
    busy = engine.take_busy()
    assert busy and all(start < end for start, end in busy)
    assert all(before[1] <= after[0] for before, after in pairwise(busy))
    assert sum(end - start for start, end in busy) >= stats.busy_s - before.busy_s - 1e-6 > 0
    assert engine.take_busy() == []


async def test_lower_priority_values_go_first(served: Served) -> None:
    engine, order = served.engine, list[int]()

    async def ask_one(priority: int) -> None:
        await engine.generate([priority], Sampling(max_tokens=30), priority=priority)
        order.append(priority)

    since = engine.stats().sampled_tokens
    async with asyncio.TaskGroup() as tasks:
        ask(engine, tasks, [[1 + i] for i in range(MAX_RUNNING)], 60)
        await sampling(engine, 1, since=since)
        for priority in (2, 1):
            for _ in range(MAX_RUNNING):
                tasks.create_task(ask_one(priority))
    assert order == [1] * MAX_RUNNING + [2] * MAX_RUNNING


async def test_a_prefix_is_computed_once(served: Served) -> None:
    engine, prompt = served.engine, words(np.random.default_rng(3), 100)
    before = engine.stats()
    first = await engine.generate(prompt, Sampling(max_tokens=40))
    whole = [*prompt, *first.token_ids.tolist(), 1, 2, 3]
    second = await engine.generate(whole, Sampling(max_tokens=4))
    await until(lambda: engine.stats().sampled_tokens == before.sampled_tokens + 44)
    stats = engine.stats()
    assert stats.prompt_tokens - before.prompt_tokens == len(prompt) + len(whole)
    # In whole blocks, where an engine keeps those alone.
    assert 128 <= stats.prefix_hit_tokens - before.prefix_hit_tokens < 140
    served.assert_exact(whole, second)


async def test_a_reply_ends_with_a_stop_token(served: Served) -> None:
    greedy = partial(Sampling, temperature=0.0, max_tokens=30)
    free = await served.engine.generate([1, 2], greedy())
    tokens = free.token_ids.tolist()
    stop = tokens[5]
    reply = await served.engine.generate([1, 2], greedy(stop_token_ids=(stop, VOCAB - 1)))
    assert reply.token_ids.tolist() == tokens[: tokens.index(stop) + 1]
    assert reply.stop is EngineStop.STOP
    served.assert_exact([1, 2], reply)


async def test_only_what_a_request_names_ends_its_reply(served: Served) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, [[END_TOKEN, 1 + i] for i in range(16)], 100)
    replies = [task.result() for task in asked]
    assert {(len(reply.token_ids), reply.stop) for reply in replies} == {(100, EngineStop.LENGTH)}
    assert any(END_TOKEN in reply.token_ids for reply in replies)


async def test_a_full_context_ends_a_reply(served: Served) -> None:
    prompt = words(np.random.default_rng(9), CONTEXT - 5)
    reply = await served.engine.generate(prompt, Sampling(max_tokens=50))
    assert (len(reply.token_ids), reply.stop) == (5, EngineStop.LENGTH)
    served.assert_exact(prompt, reply)


@pytest.mark.parametrize(
    ("prompt", "how", "message"),
    [
        ([], Sampling(max_tokens=1), "one or more token ids"),
        ([0.5], Sampling(max_tokens=1), "one or more token ids"),
        ([[1, 2]], Sampling(max_tokens=1), "one or more token ids"),
        ([[1, 2], [3]], Sampling(max_tokens=1), "not a sequence of token ids"),
        ([1] * CONTEXT, Sampling(max_tokens=1), "leaves no room"),
        ([1, VOCAB], Sampling(max_tokens=1), f"token {VOCAB}"),
        ([-1], Sampling(max_tokens=1), "token -1"),
        ([1], Sampling(max_tokens=0), "max_tokens=0"),
        ([1], Sampling(max_tokens=1, temperature=-1.0), "temperature=-1.0"),
        ([1], Sampling(max_tokens=1, temperature=1e-9), "temperature=1e-09"),
        ([1], Sampling(max_tokens=1, temperature=float("nan")), "temperature=nan"),
        ([1], Sampling(max_tokens=1, seed=-1), "seed=-1"),
    ],
)
async def test_a_bad_request_is_refused(
    served: Served, prompt: Any, how: Sampling, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        await served.engine.generate(prompt, how)


async def test_cancelling_frees_a_request_and_others_go_on(served: Served) -> None:
    engine = served.engine
    since = engine.stats().sampled_tokens
    prompts = ragged(MAX_RUNNING)
    async with asyncio.TaskGroup() as tasks:
        running = ask(engine, tasks, prompts, 400)
        await sampling(engine, MAX_RUNNING, since=since)
        late, forgotten = ask(engine, tasks, [[5], [6]], 3)
        await until(lambda: engine.stats().waiting == 2)
        forgotten.cancel()
        running[3].cancel()
        reply = await late
        assert not any(task.done() for task in running if task is not running[3])
    assert running.pop(3).cancelled() and forgotten.cancelled()
    prompts.pop(3)
    served.assert_exact([5], reply)
    for prompt, task in zip(prompts, running, strict=True):
        assert len(task.result().token_ids) == 400
        served.assert_exact(prompt, task.result())
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


@each_kind
async def test_closing_returns_what_there_is(kind: str, tmp_path: Path) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    plain = await asyncio.to_thread(load_model, path, "float32")
    engine = await start(kind, path, max_running=2, context=2048)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, [[1], [2], [3]], 2000)
        await sampling(engine, 10, since=0)
        await engine.close()
    replies = [task.result() for task in asked]
    assert {reply.stop for reply in replies} == {EngineStop.ABORTED}
    for i, reply in enumerate(replies[:2]):
        assert 1 <= len(reply.token_ids) < 2000
        assert [(span.start, span.end) for span in reply.spans] == [(0, len(reply.token_ids))]
        assert_exact(plain, [1 + i], reply)
    assert (len(replies[2].token_ids), replies[2].spans) == (0, [])
    await engine.close()
    assert engine.pids == []
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([1], Sampling(max_tokens=1))
    manifest = await asyncio.to_thread(publish, tmp_path / "new", plain.state_dict(), 1)
    with pytest.raises(EngineError, match="closed"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert engine.version == 0 and engine.stats().running == 0


@each_kind
async def test_a_missing_model_is_an_engine_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json"):
        await start(kind, tmp_path)


@each_kind
async def test_a_context_beyond_the_model_is_refused(kind: str, tmp_path: Path) -> None:
    path = await asyncio.to_thread(tiny_qwen3, tmp_path / "model")
    with pytest.raises(EngineError, match="512 positions"):
        await start(kind, path, context=513)
