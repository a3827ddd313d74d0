"""The embedded engine inside: its steps and rows, what is prefilled, aborts, failures.

What every engine does is in `test_engines`.
"""

import asyncio
from collections.abc import Sequence
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
from tests.engines import assert_exact, words
from tests.models import publish, tiny_qwen3

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


async def test_work_without_a_pause_is_one_interval(checkpoint: Path) -> None:
    engine = await LocalEngine.start(
        checkpoint,
        dtype="float32",
        section=EngineSection(max_running=32, max_cached=8),
        max_context_tokens=CONTEXT,
    )
    rng = np.random.default_rng(7)
    async with asyncio.TaskGroup() as tasks:
        for i in range(200):
            tasks.create_task(
                engine.generate(words(rng, 20), Sampling(max_tokens=1 + i % 9, seed=i))
            )
    assert engine.stats().cached_rows == 8
    busy = engine.take_busy()
    assert all(after[0] - before[1] >= 0.01 for before, after in pairwise(busy))
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


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny_qwen3(tmp_path)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load_model(path, "float32")
