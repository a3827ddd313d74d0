"""The embedded engine: exact log-probs, prefix reuse, scheduling, aborts, failures."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from configs.schema import EngineSection
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.engine_local import LocalEngine
from rollout.model import ModelError, load_model
from rollout.packing import use_packing
from rollout.stepper import Ended, Request, Stepper
from rollout.types import Sampling
from tests.models import plain_logprobs, publish, tiny_llama, tiny_qwen2, tiny_qwen3

VOCAB = 64
CONTEXT = 128

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen3(tmp_path_factory.mktemp("qwen3"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PreTrainedModel:
    return load_model(checkpoint, "float32")


@pytest.fixture
def stepper(checkpoint: Path) -> Stepper:
    return make_stepper(checkpoint)


def make_stepper(checkpoint: Path, *, context: int = CONTEXT, **section: Any) -> Stepper:
    packed = load_model(checkpoint, "float32")
    use_packing(packed)
    return Stepper(packed, section=EngineSection(**section), max_context_tokens=context)


def request(prompt: Sequence[int], *, max_tokens: int = 8, seed: int = 0, **more: Any) -> Request:
    sampling = Sampling(max_tokens=max_tokens, seed=seed, **more)
    return Request(prompt=np.array(prompt, dtype=np.int32), sampling=sampling)


def finish(stepper: Stepper) -> dict[Request, Generation]:
    """Step until nothing is left to do."""
    ended: list[Ended] = []
    while stepper.has_work:
        ended += stepper.step()
    return {one.request: one.generation for one in ended}


def words(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(0, VOCAB, count).tolist()


async def converse(
    engine: LocalEngine, prompt: list[int], *, seed: int, turns: int, temperature: float = 1.0
) -> list[tuple[list[int], Generation]]:
    """A conversation: each prompt is the last one, its reply and a few new tokens."""
    rng = np.random.default_rng(seed)
    said: list[tuple[list[int], Generation]] = []
    for turn in range(turns):
        sampling = Sampling(
            max_tokens=int(rng.integers(1, 9)), temperature=temperature, seed=seed * 10 + turn
        )
        reply = await engine.generate(prompt, sampling)
        said.append((prompt, reply))
        prompt = [*prompt, *reply.token_ids.tolist(), *words(rng, int(rng.integers(1, 12)))]
    return said


def assert_exact(
    model: PreTrainedModel, prompt: Sequence[int], reply: Generation, temperature: float = 1.0
) -> None:
    tokens = reply.token_ids.tolist()
    expected = plain_logprobs(model, prompt, tokens, temperature=temperature).numpy()
    np.testing.assert_allclose(reply.logprobs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [tiny_qwen3, tiny_qwen2, tiny_llama])
async def test_logprobs_equal_a_plain_forward_over_turns(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    path = await asyncio.to_thread(make, tmp_path, vocab_size=VOCAB)
    plain = await asyncio.to_thread(load_model, path, "float32")
    section = EngineSection(max_running=8, max_cached=6)
    engine = await LocalEngine.start(
        path, dtype="float32", section=section, max_context_tokens=CONTEXT
    )
    rng = np.random.default_rng(0)
    # Groups of four share a prompt; lengths differ between groups.
    prompts = [words(rng, int(rng.integers(1, 50))) for _ in range(6)]
    async with asyncio.TaskGroup() as tasks:
        playing = [
            tasks.create_task(
                converse(engine, prompts[i // 4], seed=i, turns=3, temperature=0.7 + i % 2)
            )
            for i in range(24)
        ]
    stats = engine.stats()
    await engine.close()
    for i, task in enumerate(playing):
        for prompt, reply in task.result():
            assert_exact(plain, prompt, reply, temperature=0.7 + i % 2)
    assert stats.prefix_hit_tokens > stats.prompt_tokens / 3
    assert stats.sampled_tokens == sum(
        len(reply.token_ids) for task in playing for _, reply in task.result()
    )


def test_greedy_equals_generate(stepper: Stepper, model: PreTrainedModel) -> None:
    rng = np.random.default_rng(1)
    asked = [request(words(rng, n), max_tokens=12, temperature=0.0) for n in (1, 7, 30)]
    for one in asked:
        stepper.add(one)
    replies = finish(stepper)
    for one in asked:
        ids = torch.from_numpy(one.prompt.astype(np.int64))[None]
        expected = model.generate(  # pyright: ignore[reportCallIssue] a mixin types it away
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert replies[one].token_ids.tolist() == expected[0, ids.shape[1] :].tolist()
        assert_exact(model, one.prompt.tolist(), replies[one])


def test_bfloat16_agrees_with_a_plain_forward(tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path, vocab_size=VOCAB, dtype=torch.bfloat16)
    plain, packed = load_model(path, "bfloat16"), load_model(path, "bfloat16")
    use_packing(packed)
    stepper = Stepper(packed, section=EngineSection(), max_context_tokens=CONTEXT)
    rng = np.random.default_rng(2)
    asked = [request(words(rng, 5 + i), max_tokens=40, seed=i) for i in range(8)]
    for one in asked:
        stepper.add(one)
    gaps: list[float] = []
    for one, reply in finish(stepper).items():
        expected = plain_logprobs(plain, one.prompt.tolist(), reply.token_ids.tolist())
        gaps += (expected - torch.from_numpy(reply.logprobs)).tolist()
    assert np.abs(gaps).mean() < 2e-2
    # The k3 estimate of the divergence, http://joschu.net/blog/kl-approx.html.
    assert np.mean(np.expm1(gaps) - gaps) < 5e-4


def test_sampling_follows_the_distribution(stepper: Stepper, model: PreTrainedModel) -> None:
    prompt, count = [3, 1, 4], 4000
    asked = [request(prompt, max_tokens=1, seed=i, temperature=1.5) for i in range(count)]
    for one in asked:
        stepper.add(one)
    drawn = [int(reply.token_ids[0]) for reply in finish(stepper).values()]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / 1.5, dim=-1).numpy()
    found = np.bincount(drawn, minlength=VOCAB) / count
    # Six standard deviations of a frequency.
    assert (np.abs(found - expected) <= 6 * np.sqrt(expected / count) + 1 / count).all()


def test_a_shared_prompt_is_prefilled_once(stepper: Stepper) -> None:
    prompt = words(np.random.default_rng(3), 60)
    for seed in range(8):
        stepper.add(request(prompt, seed=seed))
    finish(stepper)
    # Seven members compute only the last token, which gives their first log-probs.
    assert stepper.counters.prefix_hit == 7 * 59


def test_a_next_turn_computes_only_what_is_new(stepper: Stepper) -> None:
    first = request(words(np.random.default_rng(4), 40), max_tokens=10)
    stepper.add(first)
    reply = finish(stepper)[first].token_ids.tolist()
    stepper.add(request([*first.prompt.tolist(), *reply, 1, 2, 3]))
    finish(stepper)
    # The last sampled token was never computed.
    assert stepper.counters.prefix_hit == 40 + 9


def test_distant_rows_are_moved_together(checkpoint: Path, model: PreTrainedModel) -> None:
    stepper = make_stepper(checkpoint, max_running=16, max_cached=16)
    rng = np.random.default_rng(5)
    asked = [request(words(rng, 10 + i), seed=i) for i in range(16)]
    for one in asked:
        stepper.add(one)
    replies = finish(stepper)
    chosen = [asked[2], asked[15]]
    again = [
        request([*one.prompt.tolist(), *replies[one].token_ids.tolist(), 5], seed=99)
        for one in chosen
    ]
    for one in again:
        stepper.add(one)
    stepper.step()
    assert sorted(stepper.rows.lengths[:2]) == sorted(len(one.prompt) + 1 for one in again)
    for one, reply in finish(stepper).items():
        assert_exact(model, one.prompt.tolist(), reply)
    # Rows that were moved out of the way are still found, and right.
    third = request([*asked[0].prompt.tolist(), *replies[asked[0]].token_ids.tolist(), 6])
    hits = stepper.counters.prefix_hit
    stepper.add(third)
    assert_exact(model, third.prompt.tolist(), finish(stepper)[third])
    assert stepper.counters.prefix_hit - hits == len(third.prompt) - 2


def test_a_prompt_longer_than_a_step_is_computed_in_parts(tmp_path: Path) -> None:
    path = tiny_qwen3(tmp_path, vocab_size=VOCAB, layers=1, max_positions=4096)
    stepper = make_stepper(path, context=2600, max_running=2, max_cached=0)
    plain = load_model(path, "float32")
    rng = np.random.default_rng(6)
    long, short = request(words(rng, 2500), max_tokens=3), request(words(rng, 5), max_tokens=6)
    stepper.add(short)
    stepper.add(long)
    replies = finish(stepper)
    assert_exact(plain, long.prompt.tolist(), replies[long])
    assert_exact(plain, short.prompt.tolist(), replies[short])


async def test_more_requests_than_rows_all_end(checkpoint: Path) -> None:
    engine = await LocalEngine.start(
        checkpoint,
        dtype="float32",
        section=EngineSection(max_running=32, max_cached=8),
        max_context_tokens=CONTEXT,
    )
    rng = np.random.default_rng(7)
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(
                engine.generate(words(rng, 20), Sampling(max_tokens=1 + i % 9, seed=i))
            )
            for i in range(200)
        ]
    assert [len(task.result().token_ids) for task in asked] == [1 + i % 9 for i in range(200)]
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.cached_rows) == (0, 0, 8)
    assert 0 < stats.kv_used_frac < 1
    busy = engine.take_busy()
    assert busy and all(start < end for start, end in busy)
    assert sum(end - start for start, end in busy) >= stats.busy_s > 0
    assert all(after[0] - before[1] >= 0.01 for before, after in pairwise(busy))
    assert engine.take_busy() == []
    await engine.close()


def test_no_more_than_max_running_rows_run(checkpoint: Path) -> None:
    stepper = make_stepper(checkpoint, max_running=3, max_cached=2)
    for seed in range(7):
        stepper.add(request([seed], seed=seed))
    stepper.step()
    assert stepper.num_running == 3
    assert len(finish(stepper)) == 7
    assert stepper.rows.num_cached == 2


def test_lower_priority_values_go_first(checkpoint: Path) -> None:
    stepper = make_stepper(checkpoint, max_running=1)
    asked = [
        Request(prompt=np.array([i], dtype=np.int32), sampling=Sampling(max_tokens=2), priority=p)
        for i, p in enumerate([1, 0, 1, 0])
    ]
    for one in asked:
        stepper.add(one)
    order = [asked.index(one) for one in finish(stepper)]
    assert order == [1, 3, 0, 2]


def test_a_seed_gives_the_same_tokens_whatever_else_runs(checkpoint: Path) -> None:
    rng = np.random.default_rng(8)
    mine = words(rng, 20)
    alone, crowded = make_stepper(checkpoint), make_stepper(checkpoint)
    one, other = request(mine, max_tokens=80, seed=42), request(mine, max_tokens=80, seed=42)
    alone.add(one)
    for seed in range(10):
        crowded.add(request(words(rng, 5 + seed), max_tokens=3 * seed + 1, seed=seed))
    crowded.step()
    crowded.add(other)
    for seed in range(10):
        crowded.add(request(words(rng, 5 + seed), max_tokens=3 * seed + 1, seed=seed))
    found, expected = finish(crowded)[other], finish(alone)[one]
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert len(set(expected.token_ids.tolist())) > 10


def test_a_reply_ends_with_a_stop_token(stepper: Stepper) -> None:
    free = request([1, 2], max_tokens=30)
    stepper.add(free)
    tokens = finish(stepper)[free].token_ids.tolist()
    stop = tokens[5]
    stopped = request([1, 2], max_tokens=30, stop_token_ids=(stop,))
    stepper.add(stopped)
    reply = finish(stepper)[stopped]
    assert reply.token_ids.tolist() == tokens[: tokens.index(stop) + 1]
    assert reply.stop is EngineStop.STOP


def test_a_full_context_ends_a_reply(stepper: Stepper, model: PreTrainedModel) -> None:
    one = request(words(np.random.default_rng(9), CONTEXT - 5), max_tokens=50)
    stepper.add(one)
    reply = finish(stepper)[one]
    assert (len(reply.token_ids), reply.stop) == (5, EngineStop.LENGTH)
    assert_exact(model, one.prompt.tolist(), reply)


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
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
    checkpoint: Path, prompt: Any, sampling: Sampling, message: str
) -> None:
    engine = await driven(checkpoint)
    with pytest.raises(EngineError, match=message):
        await engine.generate(prompt, sampling)
    await engine.close()


async def driven(checkpoint: Path, **section: Any) -> LocalEngine:
    """An engine without a thread."""
    return await LocalEngine.start(
        checkpoint,
        dtype="float32",
        section=EngineSection(**section),
        max_context_tokens=CONTEXT,
        is_threaded=False,
    )


async def drive(engine: LocalEngine, wanted: asyncio.Task[Any]) -> None:
    """Step `engine` until `wanted` is done."""
    while not wanted.done():
        engine.take_mail()
        engine.step()
        await asyncio.sleep(0)


async def test_cancelling_frees_the_row_and_others_go_on(
    checkpoint: Path, model: PreTrainedModel
) -> None:
    engine = await driven(checkpoint, max_running=2)
    async with asyncio.TaskGroup() as tasks:
        ask = [
            tasks.create_task(engine.generate([1 + i], Sampling(max_tokens=100, seed=i)))
            for i in range(3)
        ]
        await asyncio.sleep(0)
        engine.take_mail()
        engine.step()
        assert (engine.stats().running, engine.stats().waiting) == (2, 1)
        ask[0].cancel()
        await asyncio.sleep(0)
        engine.take_mail()
        assert (engine.stats().running, engine.stats().waiting) == (1, 1)
        assert engine.stats().cached_rows == 0
        engine.step()
        assert (engine.stats().running, engine.stats().waiting) == (2, 0)
        await drive(engine, ask[1])
        await drive(engine, ask[2])
    assert ask[0].cancelled()
    for i in (1, 2):
        assert len(ask[i].result().token_ids) == 100
        assert_exact(model, [1 + i], ask[i].result())
    await engine.close()


async def test_cancelling_a_waiting_request_forgets_it(checkpoint: Path) -> None:
    engine = await driven(checkpoint, max_running=1)
    async with asyncio.TaskGroup() as tasks:
        ask = [
            tasks.create_task(engine.generate([1], Sampling(max_tokens=2, seed=i)))
            for i in range(2)
        ]
        await asyncio.sleep(0)
        engine.take_mail()
        engine.step()
        ask[1].cancel()
        await drive(engine, ask[0])
    engine.take_mail()
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)
    assert engine.stats().sampled_tokens == 2
    await engine.close()


async def test_closing_aborts_what_runs_and_what_waits(checkpoint: Path) -> None:
    engine = await driven(checkpoint, max_running=1)
    async with asyncio.TaskGroup() as tasks:
        ask = [
            tasks.create_task(engine.generate([1], Sampling(max_tokens=50, seed=i)))
            for i in range(2)
        ]
        await asyncio.sleep(0)
        engine.take_mail()
        for _ in range(4):
            engine.step()
        await engine.close()
    running, waiting = (task.result() for task in ask)
    assert (len(running.token_ids), running.stop) == (4, EngineStop.ABORTED)
    assert [(span.start, span.end) for span in running.spans] == [(0, 4)]
    assert (len(waiting.token_ids), waiting.spans) == (0, [])
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([1], Sampling(max_tokens=1))


async def test_closing_a_running_thread_aborts(checkpoint: Path) -> None:
    engine = await LocalEngine.start(
        checkpoint, dtype="float32", section=EngineSection(), max_context_tokens=CONTEXT
    )
    async with asyncio.TaskGroup() as tasks:
        ask = tasks.create_task(engine.generate([1], Sampling(max_tokens=120)))
        await asyncio.sleep(0)
        await engine.close()
    assert ask.result().stop in {EngineStop.ABORTED, EngineStop.LENGTH}


async def test_a_failing_thread_fails_every_call(
    checkpoint: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    engine = await LocalEngine.start(
        checkpoint, dtype="float32", section=EngineSection(), max_context_tokens=CONTEXT
    )
    nowhere = {name: one * float("nan") for name, one in model.state_dict().items()}
    manifest = await asyncio.to_thread(publish, tmp_path / "nan", nowhere, 1)
    await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    asked = [engine.generate([i + 1], Sampling(max_tokens=5)) for i in range(3)]
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in errors] == [EngineError] * 3
    assert "weights of version 1 give non-finite" in str(errors[0])
    with pytest.raises(EngineError, match="non-finite"):
        await engine.generate([1], Sampling(max_tokens=1))
    with pytest.raises(EngineError, match="non-finite"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    await engine.close()


async def test_a_missing_model_is_an_engine_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json"):
        await LocalEngine.start(
            tmp_path, dtype="float32", section=EngineSection(), max_context_tokens=CONTEXT
        )


async def test_a_context_beyond_the_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="512 positions"):
        await LocalEngine.start(
            checkpoint, dtype="float32", section=EngineSection(), max_context_tokens=513
        )


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_qwen3(tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load_model(path, "float32")
