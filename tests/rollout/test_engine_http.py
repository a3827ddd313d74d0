"""A real vLLM server as the engine: exact log-probs, updates in flight, aborts, a killed server, runs."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from configs.load import find
from configs.schema import EngineSection, HttpSection
from rollout import audit
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.engine_http import HttpEngine
from rollout.http_routes import COMPLETIONS, GENERATE
from rollout.model import load_model
from rollout.types import Sampling
from rollout.weights import Manifest, WeightsError
from tests.engines import why_no_vllm
from tests.models import plain_logprobs, publish
from tests.servers import VllmServer, serving

WHY_NOT = why_no_vllm()
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

ROOT = Path(__file__).parent.parent.parent
MODEL = find("tiny_policy/policy").absolute()
CONTEXT = 512
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# Long enough to be changed while it runs.
LONG = Sampling(max_tokens=400)

Start = Callable[..., Coroutine[Any, Any, HttpEngine]]

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    with serving(VllmServer(MODEL, tmp_path_factory.mktemp("steered") / "log")) as one:
        yield one


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """One that has no route for tokens, and none to update its weights."""
    log = tmp_path_factory.mktemp("fixed") / "log"
    with serving(VllmServer(MODEL, log, arguments=(), is_dev=False)) as one:
        yield one


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[VllmServer]:
    """One that a test may kill."""
    with serving(VllmServer(MODEL, tmp_path / "log")) as one:
        yield one


@pytest.fixture(scope="module")
def old() -> PreTrainedModel:
    return load_model(MODEL, "float32")


@pytest.fixture(scope="module")
def new() -> PreTrainedModel:
    """The same model with other weights."""
    model = load_model(MODEL, "float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """What starts engines; they are closed in the end."""
    async with AsyncExitStack() as engines:

        async def one(
            server: VllmServer, *, retry_s: float = 30.0, updates: bool = True
        ) -> HttpEngine:
            http = HttpSection(urls=[server.url], retry_s=retry_s)
            engine = await HttpEngine.start(
                MODEL,
                url=server.url,
                section=EngineSection(kind="http", http=http),
                max_context_tokens=CONTEXT,
                needs_updates=updates,
            )
            engines.push_async_callback(engine.close)
            return engine

        yield one


def written(model: PreTrainedModel, path: Path, version: int) -> Manifest:
    return publish(path / f"{version}.safetensors", model.state_dict(), version)


def gap(reply: Generation, models: dict[int, PreTrainedModel], temperature: float = 1.0) -> float:
    """The largest difference of a log-prob from that of the weights that are said to have sampled it."""
    ids = reply.token_ids.tolist()
    worst = 0.0
    for span in reply.spans:
        plain = plain_logprobs(models[span.version], PROMPT, ids, temperature=temperature).numpy()
        part = slice(span.start, span.end)
        worst = max(worst, float(np.abs(plain[part] - reply.logprobs[part]).max()))
    return worst


async def counted(server: VllmServer, name: str = "generation_tokens_total") -> float:
    """What the server counts; by default the tokens that it sampled since it started."""
    return await asyncio.to_thread(server.counter, f"vllm:{name}")


async def sampled(server: VllmServer, count: float) -> None:
    """Wait until the server has sampled so many tokens since it started."""
    while await counted(server) < count:
        pass


async def is_paused(server: VllmServer) -> bool:
    return (await asyncio.to_thread(server.answer, "/is_paused"))["is_paused"]


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
async def test_logprobs_are_those_of_a_plain_forward_pass(
    start: Start, server: VllmServer, old: PreTrainedModel, temperature: float
) -> None:
    engine = await start(server)
    assert engine._found.route is GENERATE
    assert engine.num_parameters == sum(one.numel() for one in old.parameters())
    sampling = Sampling(max_tokens=64, temperature=temperature)
    replies = await asyncio.gather(*(engine.generate(PROMPT, sampling) for _ in range(8)))
    assert all(reply.stop is EngineStop.LENGTH for reply in replies)
    worst = max(gap(reply, {0: old}, temperature or 1.0) for reply in replies)
    assert worst < 1e-4
    assert len({tuple(reply.token_ids) for reply in replies}) >= (2 if temperature else 1)


async def test_the_openai_route_of_a_fixed_server_gives_the_same(
    start: Start, fixed: VllmServer, server: VllmServer, old: PreTrainedModel
) -> None:
    engine, other = await start(fixed, updates=False), await start(server)
    assert engine._found.route is COMPLETIONS
    greedy = Sampling(max_tokens=64, temperature=0)
    reply, expected = await engine.generate(PROMPT, greedy), await other.generate(PROMPT, greedy)
    np.testing.assert_array_equal(reply.token_ids, expected.token_ids)
    assert gap(await engine.generate(PROMPT, Sampling(max_tokens=64)), {0: old}) < 1e-4


async def test_a_fixed_server_is_refused_for_training(start: Start, fixed: VllmServer) -> None:
    with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
        await start(fixed)


async def test_a_stop_token_ends_a_reply_and_the_context_does(
    start: Start, server: VllmServer, old: PreTrainedModel
) -> None:
    engine = await start(server)
    greedy = await engine.generate(PROMPT, Sampling(max_tokens=20, temperature=0))
    last = int(greedy.token_ids[9])
    reply = await engine.generate(
        PROMPT, Sampling(max_tokens=20, temperature=0, stop_token_ids=(last,))
    )
    first = greedy.token_ids.tolist().index(last)
    assert (reply.token_ids.tolist(), reply.stop) == (
        greedy.token_ids[: first + 1].tolist(),
        EngineStop.STOP,
    )
    full = await engine.generate([7] * (CONTEXT - 3), Sampling(max_tokens=20))
    assert (len(full.token_ids), full.stop) == (3, EngineStop.LENGTH)


@pytest.mark.parametrize("mode", [UpdateMode.RECOMPUTE, UpdateMode.KEEP, UpdateMode.DRAIN])
async def test_an_update_in_flight_is_exact_per_span(
    start: Start,
    server: VllmServer,
    old: PreTrainedModel,
    new: PreTrainedModel,
    tmp_path: Path,
    mode: UpdateMode,
) -> None:
    engine = await start(server)
    before = await counted(server)
    running = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(4)]
    await sampled(server, before + 40)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    report = await engine.update_weights(manifest, mode)
    assert (report.version, engine.version) == (1, 1)
    replies = await asyncio.gather(*running)
    later = await engine.generate(PROMPT, Sampling(max_tokens=32))
    models = {0: old, 1: new}
    assert gap(later, {1: new}) < 1e-4
    versions = [[span.version for span in reply.spans] for reply in replies]
    if mode is UpdateMode.DRAIN:
        assert versions == [[0]] * 4
    else:
        assert versions == [[0, 1]] * 4
    if mode is UpdateMode.KEEP:
        assert [[span.mixed_kv for span in reply.spans] for reply in replies] == [[False, True]] * 4
        assert max(gap(reply, models) for reply in replies) > 1e-2  # sampled on the old cache
        replies = [only_unmixed(reply) for reply in replies]
    assert not any(span.mixed_kv for reply in replies for span in reply.spans)
    assert max(gap(reply, models) for reply in replies) < 1e-4


def only_unmixed(reply: Generation) -> Generation:
    kept = [span for span in reply.spans if not span.mixed_kv]
    return Generation(
        token_ids=reply.token_ids, logprobs=reply.logprobs, spans=kept, stop=reply.stop
    )


async def test_the_server_goes_back_to_the_models_weights_for_another_engine(
    start: Start, server: VllmServer, old: PreTrainedModel, new: PreTrainedModel, tmp_path: Path
) -> None:
    first = await start(server)
    manifest = await asyncio.to_thread(written, new, tmp_path, 5)
    await first.update_weights(manifest, UpdateMode.RECOMPUTE)
    await first.close()
    second = await start(server)
    assert gap(await second.generate(PROMPT, Sampling(max_tokens=32)), {0: old}) < 1e-4


async def test_cancelling_frees_the_request_on_the_server(start: Start, server: VllmServer) -> None:
    engine = await start(server)
    before = await counted(server)
    task = asyncio.create_task(engine.generate(PROMPT, LONG))
    await sampled(server, before + 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while await counted(server, "num_requests_running"):
        pass
    assert await counted(server) < before + LONG.max_tokens
    assert engine.stats().running == 0


async def test_refused_weights_change_nothing(
    start: Start, server: VllmServer, old: PreTrainedModel, new: PreTrainedModel, tmp_path: Path
) -> None:
    engine = await start(server)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    lacking = dict(list(new.state_dict().items())[1:])
    for damaged, said in [
        (msgspec.structs.replace(manifest, path="/nowhere"), "No such file"),
        (msgspec.structs.replace(manifest, checksum="0"), "not the file that was published"),
        (await asyncio.to_thread(publish, tmp_path / "2", lacking, 2), "lacks"),
    ]:
        with pytest.raises(WeightsError, match=said):
            await engine.update_weights(damaged, UpdateMode.RECOMPUTE)
    assert not await is_paused(server)
    assert gap(await engine.generate(PROMPT, Sampling(max_tokens=32)), {0: old}) < 1e-4
    await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert gap(await engine.generate(PROMPT, Sampling(max_tokens=32)), {1: new}) < 1e-4


async def test_an_update_that_is_late_leaves_the_server_serving(
    start: Start, server: VllmServer, old: PreTrainedModel, new: PreTrainedModel, tmp_path: Path
) -> None:
    engine = await start(server)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    engine._options = HttpSection(urls=[server.url], update_timeout_s=1e-6)
    with pytest.raises(EngineError, match="update_timeout_s=1e-06"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert not await is_paused(server)
    assert gap(await engine.generate(PROMPT, Sampling(max_tokens=32)), {0: old}) < 1e-4


async def test_a_killed_server_that_comes_back_loses_nothing(
    start: Start, doomed: VllmServer, new: PreTrainedModel, tmp_path: Path
) -> None:
    engine = await start(doomed, retry_s=120.0)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    running = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(4)]
    await sampled(doomed, 40)
    await asyncio.to_thread(doomed.kill)
    await asyncio.to_thread(doomed.start)
    replies = await asyncio.gather(*running)
    assert [len(reply.token_ids) for reply in replies] == [LONG.max_tokens] * 4
    assert max(gap(reply, {1: new}) for reply in replies) < 1e-4
    await asyncio.to_thread(doomed.kill)
    engine._options = HttpSection(urls=[doomed.url], retry_s=0.5)
    with pytest.raises(EngineError, match=f"{doomed.url}: .*see that the server runs"):
        await engine.generate(PROMPT, LONG)


# Runs.

QUICK = (
    "engine.kind=http",
    "logging.wandb=off",
    "learner.steps=3",
    "checkpoint.every=0",
    *(f"eval.sets.{name}.count=5" for name in ("fresh", "harder", "held_out", "unseen")),
)


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "launch.py", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )


@pytest.mark.ray
def test_a_run_trains_on_a_server(server: VllmServer, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = launch(*QUICK, f"run.dir={run_dir}", f"engine.http.urls=['{server.url}']")
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [
        msgspec.json.decode(line) for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()
    ]
    assert len(lines) == 3
    gaps = [line["kl/gap_lag0_mean"] for line in lines if "kl/gap_lag0_mean" in line]
    assert gaps
    assert max(gaps) < 1e-5  # learner and server compute alike
    assert lines[-1]["engine/prefix_hit_frac"] > 0
    assert audit.recompute(run_dir).groups
    assert server.answer("/weight_info")["weight_version"] == "3"


@pytest.mark.ray
def test_a_fixed_server_is_evaluated_and_not_trained_on(fixed: VllmServer, tmp_path: Path) -> None:
    at = f"engine.http.urls=['{fixed.url}']"
    refused = launch(*QUICK, f"run.dir={tmp_path / 'train'}", at)
    assert refused.returncode == 2
    assert "VLLM_SERVER_DEV_MODE=1" in refused.stderr
    assert not (tmp_path / "train").exists()
    done = launch("eval", *QUICK, f"run.dir={tmp_path / 'eval'}", at)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "fresh" in done.stdout
