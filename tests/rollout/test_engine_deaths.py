"""vLLM's processes fail, hang and die: what is asked of the engine is served all the same."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from configs.schema import VllmSection
from rollout.engine import EngineError, UpdateMode
from rollout.model import load_model
from rollout.types import Sampling
from rollout.weights import Manifest
from tests.engines import (
    Served,
    ask,
    checkpoint,
    needs_vllm,
    ragged,
    sampling,
    start,
    started,
    until,
)
from tests.faults import ARGUMENTS, spoil
from tests.models import publish

# One engine, as each test leaves one that serves.
pytestmark = [*needs_vllm, pytest.mark.asyncio(loop_scope="session")]

# On a busy machine loading these weights takes a second at most.
TIMEOUT_S = 6.0

torch.set_num_threads(1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    paths = [checkpoint(folder / f"model_{seed}", seed=seed) for seed in range(3)]
    models = [load_model(path, "float32") for path in paths]
    options = VllmSection(update_timeout_s=TIMEOUT_S, arguments=ARGUMENTS)
    async with started("vllm", paths[0], max_running=16, vllm=options) as engine:
        # What an engine makes for its first request is not of the test that comes first.
        await engine.generate([1], Sampling(max_tokens=1))
        yield Served(engine, folder, models)


async def update(served: Served, which: int) -> int:
    """Serve the weights of a model as a next version, which is returned."""
    manifest = await asyncio.to_thread(served.publish, which)
    await served.engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    return manifest.version


def send(served: Served, number: signal.Signals) -> list[int]:
    """Signal the engine's processes, which are returned."""
    pids = served.engine.pids
    for pid in pids:
        os.kill(pid, number)
    return pids


def assert_replaced(served: Served, old: list[int]) -> None:
    pids = served.engine.pids
    assert old and pids and not set(old) & set(pids)
    for pid in old:
        # Nobody's child any more, dead or alive.
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_an_engine_killed_amid_requests_loses_none(served: Served) -> None:
    engine, version, prompts = served.engine, await update(served, 1), ragged(20)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 200)
        await sampling(engine, 100, since=engine.stats().sampled_tokens)
        before = engine.stats()
        old = send(served, signal.SIGKILL)
    assert_replaced(served, old)
    for prompt, task in zip(prompts, asked, strict=True):
        reply = task.result()
        assert [(span.version, span.end) for span in reply.spans] == [(version, 200)]
        served.assert_exact(prompt, reply)
    after = engine.stats()
    assert engine.version == after.version == version
    # Totals go on from where they were.
    assert after.sampled_tokens >= before.sampled_tokens + 20 * 200
    assert after.prompt_tokens > before.prompt_tokens


async def test_an_update_that_comes_while_another_engine_starts_is_what_that_one_loads(
    served: Served,
) -> None:
    engine, prompt = served.engine, ragged(1)[0]
    first = await asyncio.to_thread(served.publish, 1)
    await engine.update_weights(first, UpdateMode.RECOMPUTE)
    second = await asyncio.to_thread(served.publish, 2)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, [prompt], 300)
        await sampling(engine, 5, since=engine.stats().sampled_tokens)
        old = send(served, signal.SIGKILL)
        await until(lambda: not engine.pids)
        # A run writes its next version over the one before the last.
        await asyncio.to_thread(Path(first.path).unlink)
        report = await engine.update_weights(second, UpdateMode.RECOMPUTE)
    assert_replaced(served, old)
    assert report.version == engine.version == second.version
    served.assert_exact(prompt, asked[0].result())


@pytest.mark.parametrize("how", ["raise", "die", "hang"])
async def test_an_update_that_fails_half_way_is_loaded_by_another_engine(
    served: Served, how: str
) -> None:
    engine, old_version, prompts = served.engine, await update(served, 0), ragged(4)
    manifest = await asyncio.to_thread(served.publish, 2)
    fault = await asyncio.to_thread(spoil, manifest, how, is_once=True)
    old = engine.pids
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 400)
        await sampling(engine, 20, since=engine.stats().sampled_tokens)
        report = await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert not await asyncio.to_thread(fault.exists)
    assert_replaced(served, old)
    assert report.version == engine.version == manifest.version
    for prompt, task in zip(prompts, asked, strict=True):
        assert {span.version for span in task.result().spans} <= {old_version, manifest.version}
        served.assert_exact(prompt, task.result())


async def test_weights_that_no_engine_can_load_leave_the_old_ones(served: Served) -> None:
    engine, version, prompts = served.engine, await update(served, 1), ragged(4)
    manifest = await asyncio.to_thread(served.publish, 2)
    await asyncio.to_thread(spoil, manifest, "raise", is_once=False)
    old = engine.pids
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 400)
        await sampling(engine, 20, since=engine.stats().sampled_tokens)
        with pytest.raises(EngineError, match=f"version {manifest.version} was not loaded"):
            await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert_replaced(served, old)
    assert engine.version == version
    for prompt, task in zip(prompts, asked, strict=True):
        assert [span.version for span in task.result().spans] == [version]
        served.assert_exact(prompt, task.result())
    said = await asyncio.to_thread((served.folder / "engine.log").read_text)
    assert "loading failed half-way" in said
    await update(served, 0)
    served.assert_exact([1], await engine.generate([1], Sampling(max_tokens=20)))


async def test_an_engine_that_hangs_is_replaced_after_the_deadline(served: Served) -> None:
    engine, prompts = served.engine, ragged(6)
    await update(served, 1)
    manifest = await asyncio.to_thread(served.publish, 2)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 300)
        await sampling(engine, 20, since=engine.stats().sampled_tokens)
        old = send(served, signal.SIGSTOP)
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert_replaced(served, old)
    assert engine.version == manifest.version
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())


async def test_a_drain_goes_on_when_the_engine_dies(served: Served) -> None:
    engine, old_version, prompts = served.engine, await update(served, 0), ragged(4)
    manifest = await asyncio.to_thread(served.publish, 1)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 450)
        updating = tasks.create_task(engine.update_weights(manifest, UpdateMode.DRAIN))
        await sampling(engine, 40, since=engine.stats().sampled_tokens)
        old = send(served, signal.SIGKILL)
    assert_replaced(served, old)
    assert updating.result().version == engine.version == manifest.version > old_version
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())


async def test_a_drain_that_nobody_else_waits_with_goes_on_when_the_engine_dies(
    served: Served,
) -> None:
    engine = served.engine
    await update(served, 0)
    manifest = await asyncio.to_thread(served.publish, 1)
    # It is told to drain, and has no request that could find out that it is gone.
    old = send(served, signal.SIGSTOP)
    updating = asyncio.create_task(engine.update_weights(manifest, UpdateMode.DRAIN))
    for _ in range(20):
        await asyncio.sleep(0)
    send(served, signal.SIGKILL)
    assert (await updating).version == engine.version == manifest.version
    assert_replaced(served, old)
    served.assert_exact([1], await engine.generate([1], Sampling(max_tokens=20)))


async def test_an_update_cancelled_half_way_leaves_an_engine_that_serves(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    engine, version, prompts = served.engine, await update(served, 1), ragged(4)
    manifest = await asyncio.to_thread(served.publish, 2)
    fault = await asyncio.to_thread(spoil, manifest, "hang", is_once=True)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 400)
        await sampling(engine, 20, since=engine.stats().sampled_tokens)
        updating = tasks.create_task(engine.update_weights(manifest, UpdateMode.RECOMPUTE))
        async with asyncio.timeout(60):
            while await asyncio.to_thread(fault.exists):
                continue
        updating.cancel()
    assert updating.cancelled() and engine.version == version
    # It is not told to go on: nobody knows what it holds.
    assert f"loading version {manifest.version} was cancelled" in caplog.text
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())
    assert await update(served, 0) == engine.version
    served.assert_exact([1], await engine.generate([1], Sampling(max_tokens=20)))


async def test_an_update_cancelled_while_the_engine_hangs_leaves_one_that_serves(
    served: Served,
) -> None:
    engine, version, prompts = served.engine, await update(served, 1), ragged(4)
    manifest = await asyncio.to_thread(served.publish, 2)
    async with asyncio.TaskGroup() as tasks:
        asked = ask(engine, tasks, prompts, 450)
        await sampling(engine, 20, since=engine.stats().sampled_tokens)
        updating = tasks.create_task(engine.update_weights(manifest, UpdateMode.DRAIN))
        await sampling(engine, 40, since=engine.stats().sampled_tokens)
        old = send(served, signal.SIGSTOP)
        updating.cancel()
    assert updating.cancelled() and engine.version == version
    assert_replaced(served, old)
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())


async def test_a_request_that_meets_death_after_death_is_not_asked_again(served: Served) -> None:
    engine = served.engine
    await update(served, 1)
    asked = asyncio.gather(
        engine.generate([1, 2], Sampling(max_tokens=480)), return_exceptions=True
    )
    for _ in range(3):
        # Others are served meanwhile.
        reply = await engine.generate([3], Sampling(max_tokens=2))
        served.assert_exact([3], reply)
        assert not asked.done()
        send(served, signal.SIGKILL)
        await until(lambda: not engine.pids)
    (error,) = await asked
    assert isinstance(error, EngineError)
    assert "3 engines died in the middle of this request of 2 tokens" in str(error)
    served.assert_exact([3], await engine.generate([3], Sampling(max_tokens=20)))


async def test_a_start_that_fails_is_tried_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    engine, model = served.engine, served.folder / "model_0"
    await update(served, 2)
    await asyncio.to_thread(model.rename, served.folder / "away")
    async with asyncio.TaskGroup() as tasks:
        (asked,) = ask(engine, tasks, [[1]], 300)
        await sampling(engine, 5, since=engine.stats().sampled_tokens)
        old = send(served, signal.SIGKILL)
        await until(lambda: "started once more" in caplog.text)
        await asyncio.to_thread((served.folder / "away").rename, model)
    assert_replaced(served, old)
    served.assert_exact([1], asked.result())


async def test_a_close_that_is_given_up_amid_a_replacement_lets_nobody_wait_for_ever(
    tmp_path: Path,
) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    engine = await start("vllm", path, max_running=4)
    before = engine.pids
    asked = asyncio.create_task(engine.generate([1], Sampling(max_tokens=400)))
    await sampling(engine, 5, since=0)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not engine.pids)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(EngineError, match="closed"):
        await asked
    await engine.close()
    assert engine.pids == []


async def test_an_engine_that_cannot_be_started_again_fails_every_call(tmp_path: Path) -> None:
    def prepare() -> tuple[Path, Manifest]:
        path = checkpoint(tmp_path / "model")
        tensors = load_model(path, "float32").state_dict()
        return path, publish(tmp_path / "weights", tensors, 1)

    path, manifest = await asyncio.to_thread(prepare)
    engine = await start("vllm", path, max_running=4)
    asked = [
        asyncio.create_task(engine.generate(prompt, Sampling(max_tokens=200)))
        for prompt in ragged(20)
    ]
    await sampling(engine, 20, since=0)
    await asyncio.to_thread(path.rename, tmp_path / "away")
    for pid in engine.pids:
        os.kill(pid, signal.SIGKILL)
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(end) for end in ends} == {EngineError}
    assert all("cannot be started again" in str(end) for end in ends)
    with pytest.raises(EngineError, match="cannot be started again"):
        await engine.generate([1], Sampling(max_tokens=1))
    with pytest.raises(EngineError, match="cannot be started again"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert (engine.pids, engine.stats().running, engine.stats().waiting) == ([], 0, 0)
    await engine.close()
