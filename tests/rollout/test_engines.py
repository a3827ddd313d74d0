"""What every kind of engine must do: exact log-probs, scheduling, ends of replies, refusals."""

import asyncio
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from rollout.engine import EngineError, EngineStop
from rollout.types import Sampling
from tests.engines import (
    CONTEXT,
    END_TOKEN,
    MAX_RUNNING,
    VOCAB,
    Served,
    ask,
    ragged,
    words,
)

# On the loop of the engine that they share.
pytestmark = pytest.mark.asyncio(loop_scope="session")

torch.set_num_threads(1)


async def test_greedy_equals_generate(served: Served) -> None:
    rng = np.random.default_rng(1)
    prompts = [words(rng, n) for n in (1, 7, 100)]
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, prompts, 12, temperature=0.0)
    model: Any = served.model
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
    # Over HTTP each takes 10 ms.
    prompt, count = [3, 1, 4], 500 if served.replies_come_whole else 1500
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, [prompt] * count, 1, temperature=1.5)
    drawn = [int(task.result().token_ids[0]) for task in asked]
    with torch.inference_mode():
        logits = served.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / 1.5, dim=-1).numpy()
    found = np.bincount(drawn, minlength=VOCAB) / count
    # Six standard deviations of a frequency.
    assert (np.abs(found - expected) <= 6 * np.sqrt(expected / count) + 1 / count).all()


async def test_more_requests_than_run_together_all_end(served: Served) -> None:
    engine, rng = served.engine, np.random.default_rng(7)
    was = await served.until(lambda seen: seen.running == 0)
    engine.take_busy()
    before = engine.stats()
    prompts, counts = [words(rng, 20) for _ in range(200)], [10 + i % 9 for i in range(200)]
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(engine.generate(prompt, Sampling(max_tokens=counts[i], seed=i)))
            for i, prompt in enumerate(prompts)
        ]
    assert [len(task.result().token_ids) for task in asked] == counts
    for prompt, task in zip(prompts, asked, strict=True):
        assert task.result().stop is EngineStop.LENGTH
        served.assert_exact(prompt, task.result())
    await served.until(lambda seen: seen.sampled_tokens == was.sampled_tokens + sum(counts))
    stats = engine.stats()
    assert stats.sampled_tokens == before.sampled_tokens + sum(counts)
    assert (stats.version, stats.running, stats.waiting) == (engine.version, 0, 0)
    assert stats.prompt_tokens == before.prompt_tokens + 200 * 20
    assert stats.cpu_s > before.cpu_s
    busy = engine.take_busy()
    assert busy and all(start < end for start, end in busy)
    assert all(before[1] <= after[0] for before, after in pairwise(busy))
    assert sum(end - start for start, end in busy) >= stats.busy_s - before.busy_s - 1e-6 > 0
    assert engine.take_busy() == []


async def test_only_so_many_requests_run_together(served: Served) -> None:
    async with asyncio.TaskGroup() as tasks:
        asked = ask(served.engine, tasks, ragged(MAX_RUNNING + 4), CONTEXT)
        seen = await served.until(lambda seen: seen.running > 0 and seen.waiting == 4)
        assert seen.running == MAX_RUNNING
        assert 0 < seen.kv_used_frac <= 1
        for one in asked:
            one.cancel()


async def test_lower_priority_values_go_first(served: Served) -> None:
    engine, order = served.engine, list[int]()

    async def ask_one(priority: int) -> None:
        await engine.generate([priority], Sampling(max_tokens=30), priority=priority)
        order.append(priority)

    async with asyncio.TaskGroup() as tasks:
        holding = ask(engine, tasks, [[1 + i] for i in range(MAX_RUNNING)], CONTEXT)
        await served.until(lambda seen: seen.running == MAX_RUNNING)
        for priority in (2, 1):
            for _ in range(MAX_RUNNING):
                tasks.create_task(ask_one(priority))
        await served.until(lambda seen: seen.waiting == 2 * MAX_RUNNING)
        for one in holding:
            one.cancel()
    assert order == [1] * MAX_RUNNING + [2] * MAX_RUNNING


async def test_a_prefix_is_computed_once(served: Served) -> None:
    engine, prompt = served.engine, words(np.random.default_rng(3), 100)
    was, before = await served.seen(), engine.stats()
    first = await engine.generate(prompt, Sampling(max_tokens=40))
    whole = [*prompt, *first.token_ids.tolist(), 1, 2, 3]
    second = await engine.generate(whole, Sampling(max_tokens=4))
    await served.until(lambda seen: seen.sampled_tokens == was.sampled_tokens + 44)
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
    prompts = ragged(MAX_RUNNING)
    async with asyncio.TaskGroup() as tasks:
        running = ask(engine, tasks, prompts, served.long)
        await served.until(lambda seen: seen.running == MAX_RUNNING)
        late, forgotten = ask(engine, tasks, [[5], [6]], 3)
        await served.until(lambda seen: seen.waiting == 2)
        forgotten.cancel()
        running[3].cancel()
        reply = await late
        assert not any(task.done() for task in running if task is not running[3])
    assert running.pop(3).cancelled() and forgotten.cancelled()
    prompts.pop(3)
    served.assert_exact([5], reply)
    for prompt, task in zip(prompts, running, strict=True):
        assert len(task.result().token_ids) == served.long
        served.assert_exact(prompt, task.result())
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    await served.until(lambda seen: (seen.running, seen.waiting) == (0, 0))
