"""Weights that change in flight, on every kind of engine: each mode's exactness, and refusals."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rollout.engine import EngineStop, UpdateMode
from rollout.types import Sampling, Span
from rollout.weights import Manifest, WeightsError
from tests.engines import (
    MAX_RUNNING,
    VOCAB,
    Served,
    ask,
    assert_close,
    assert_covered,
    continued,
    ragged,
)
from tests.models import plain_logprobs

# On the loop of the engine that they share.
pytestmark = pytest.mark.asyncio(loop_scope="session")

torch.set_num_threads(1)


async def update(served: Served, which: int, mode: UpdateMode) -> int:
    """Serve the weights of a model as a next version, which is returned."""
    manifest = await asyncio.to_thread(served.publish, which)
    report = await served.engine.update_weights(manifest, mode)
    assert report.version == manifest.version == served.engine.version
    assert served.engine.stats().version == manifest.version
    assert report.load_s > 0 and report.stall_s > 0
    return manifest.version


async def test_recompute_gives_each_token_its_own_versions_logprob(served: Served) -> None:
    engine, old, prompts = served.engine, served.engine.version, ragged(5)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, served.long, temperature=0.8)
        await served.sampling(5 * 5, running=5)
        first = await update(served, 1, UpdateMode.RECOMPUTE)
        await served.sampling(5 * 5)
        second = await update(served, 2, UpdateMode.RECOMPUTE)
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert [span.version for span in reply.spans] == [old, first, second]
        assert not any(span.mixed_kv for span in reply.spans)
        assert (len(reply.token_ids), reply.stop) == (served.long, EngineStop.LENGTH)
        served.assert_exact(prompt, reply, temperature=0.8)


async def test_keep_goes_on_with_the_old_cache(served: Served) -> None:
    await update(served, 0, UpdateMode.RECOMPUTE)
    engine, old, prompts = served.engine, served.engine.version, ragged(5)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, served.long)
        await served.sampling(5 * 5, running=5)
        new = await update(served, 1, UpdateMode.KEEP)
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert_covered(reply)
        assert [(one.version, one.mixed_kv) for one in reply.spans] == [(old, False), (new, True)]
        ids, switch = [*prompt, *reply.token_ids.tolist()], len(prompt) + reply.spans[0].end
        expected = continued(
            served.models[0], served.models[1], ids, first=len(prompt), switch=switch
        )
        assert_close(reply.logprobs, expected)
    # One that begins afterwards finds nothing of the old cache.
    reply = await engine.generate(prompts[4], Sampling(max_tokens=20))
    assert reply.spans == [Span(new, 0, 20)]
    served.assert_exact(prompts[4], reply)


async def test_recompute_after_keep_is_exact_again(served: Served) -> None:
    await update(served, 0, UpdateMode.RECOMPUTE)
    engine = served.engine
    async with asyncio.TaskGroup() as tasks:
        (asked,) = ask(engine, tasks, [[1, 2, 3]], served.long)
        await served.sampling(4, running=1)
        await update(served, 1, UpdateMode.KEEP)
        await served.sampling(4)
        last = await update(served, 2, UpdateMode.RECOMPUTE)
    reply = asked.result()
    assert [span.mixed_kv for span in reply.spans] == [False, True, False]
    span = reply.spans[-1]
    assert span.version == last
    expected = plain_logprobs(served.models[2], [1, 2, 3], reply.token_ids.tolist())
    assert_close(reply.logprobs[span.start :], expected[span.start :])


async def test_drain_lets_running_requests_finish_and_waiting_ones_wait(served: Served) -> None:
    engine, old, prompts = served.engine, served.engine.version, ragged(MAX_RUNNING + 4)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts[:MAX_RUNNING], served.long)
        await served.sampling(MAX_RUNNING, running=MAX_RUNNING)
        asked += ask(engine, tasks, prompts[MAX_RUNNING:], 20)
        await served.until(lambda seen: seen.waiting == 4)
        new = await update(served, 1, UpdateMode.DRAIN)
        assert all(task.done() for task in asked[:MAX_RUNNING])
    for i, (prompt, task) in enumerate(zip(prompts, asked, strict=True)):
        version, count = (old, served.long) if i < MAX_RUNNING else (new, 20)
        assert task.result().spans == [Span(version, 0, count)]
        served.assert_exact(prompt, task.result())


async def test_a_drain_that_is_given_up_lets_requests_in_again(served: Served) -> None:
    engine, old = served.engine, served.engine.version
    manifest = await asyncio.to_thread(served.publish, 2)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, ragged(MAX_RUNNING), served.long)
        await served.sampling(MAX_RUNNING, running=MAX_RUNNING)
        late = ask(engine, tasks, [[1], [2]], 5)
        task = tasks.create_task(engine.update_weights(manifest, UpdateMode.DRAIN))
        await served.sampling(MAX_RUNNING * 5)
        task.cancel()
    assert task.cancelled() and engine.version == old
    assert {len(one.result().token_ids) for one in asked} == {served.long}
    for i, one in enumerate(late):
        served.assert_exact([1 + i], one.result())


async def test_a_prefix_is_not_reused_across_versions(served: Served) -> None:
    engine, (prompt,) = served.engine, [list(range(60)) * 2]
    how = Sampling(max_tokens=4)
    await engine.generate(prompt, how)
    for which, mode in ((1, UpdateMode.RECOMPUTE), (2, UpdateMode.KEEP), (0, UpdateMode.DRAIN)):
        await update(served, which, mode)
        was, before = await served.seen(), engine.stats()
        first = await engine.generate(prompt, how)
        await served.until(lambda seen: seen.sampled_tokens == was.sampled_tokens + 4)  # noqa: B023
        assert engine.stats().prefix_hit_tokens == before.prefix_hit_tokens
        second = await engine.generate(prompt, how)
        await served.until(lambda seen: seen.sampled_tokens == was.sampled_tokens + 8)  # noqa: B023
        assert engine.stats().prefix_hit_tokens >= before.prefix_hit_tokens + 96
        for reply in (first, second):
            assert reply.spans == [Span(engine.version, 0, 4)]
            served.assert_exact(prompt, reply)


NORM, EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"


def wrong_shape(tensors: dict[str, Tensor]) -> None:
    tensors[EMBEDDINGS] = torch.zeros(VOCAB + 1, 32)


def wrong_number_type(tensors: dict[str, Tensor]) -> None:
    tensors[NORM] = tensors[NORM].to(torch.bfloat16)


def without_one(tensors: dict[str, Tensor]) -> None:
    del tensors[NORM]


def with_one_more(tensors: dict[str, Tensor]) -> None:
    tensors["model.extra.weight"] = torch.zeros(1)


def damaged(manifest: Manifest) -> Manifest:
    Path(manifest.path).write_bytes(b"x" * manifest.num_bytes)
    return manifest


def shortened(manifest: Manifest) -> Manifest:
    path = Path(manifest.path)
    path.write_bytes(path.read_bytes()[:-10])
    return manifest


def removed(manifest: Manifest) -> Manifest:
    Path(manifest.path).unlink()
    return manifest


def old_version(manifest: Manifest) -> Manifest:
    return msgspec.structs.replace(manifest, version=0)


@pytest.mark.parametrize(
    ("change", "spoil", "message"),
    [
        (wrong_shape, None, r"embed_tokens.weight as \(65, 32\)"),
        (wrong_number_type, None, "bfloat16"),
        (without_one, None, r"lacks.*model\.norm\.weight"),
        (with_one_more, None, r"model\.extra\.weight"),
        (None, damaged, "is not the file"),
        (None, shortened, "is not the file"),
        (None, removed, "No such file"),
        (None, old_version, "version 0 is not newer"),
    ],
)
async def test_a_refused_update_changes_nothing(
    served: Served,
    change: Callable[[dict[str, Tensor]], None] | None,
    spoil: Callable[[Manifest], Manifest] | None,
    message: str,
) -> None:
    version = await update(served, 0, UpdateMode.RECOMPUTE)
    engine, pids, prompts = served.engine, served.engine.pids, ragged(3)
    manifest = await asyncio.to_thread(partial(served.publish, 1, change=change))
    if spoil is not None:
        manifest = await asyncio.to_thread(spoil, manifest)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, served.long)
        await served.sampling(3, running=3)
        for mode in (UpdateMode.RECOMPUTE, UpdateMode.KEEP):
            with pytest.raises(WeightsError, match=message):
                await engine.update_weights(manifest, mode)
    assert engine.version == engine.stats().version == version
    assert engine.pids == pids
    again = await engine.generate(prompts[2], Sampling(max_tokens=20))
    for prompt, reply in [
        *zip(prompts, (one.result() for one in asked), strict=True),
        (prompts[2], again),
    ]:
        assert [(span.version, span.mixed_kv) for span in reply.spans] == [(version, False)]
        served.assert_exact(prompt, reply)


async def test_two_updates_at_once_are_one_after_the_other(served: Served) -> None:
    engine, prompts = served.engine, ragged(4)
    manifests = [await asyncio.to_thread(served.publish, which) for which in (1, 2)]
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, served.long)
        await served.sampling(8, running=4)
        updates = [
            tasks.create_task(engine.update_weights(manifest, UpdateMode.RECOMPUTE))
            for manifest in manifests
        ]
    assert [one.result().version for one in updates] == [one.version for one in manifests]
    assert engine.version == manifests[1].version
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())
    with pytest.raises(WeightsError, match="not newer"):
        await engine.update_weights(manifests[1], UpdateMode.RECOMPUTE)


async def test_updates_under_load_lose_no_request(served: Served) -> None:
    engine, prompts, count = served.engine, ragged(40), served.long // 4
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, count)
        for which in (1, 2, 0):
            await served.sampling(30, running=1)
            await update(served, which, UpdateMode.RECOMPUTE)
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert (len(reply.token_ids), reply.stop) == (count, EngineStop.LENGTH)
        served.assert_exact(prompt, reply)
