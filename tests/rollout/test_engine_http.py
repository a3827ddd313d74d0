"""What only an engine over HTTP has: a server that is fixed, shared, late or killed, and runs on one."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import PreTrainedModel

from configs.load import find
from configs.schema import EngineSection, HttpSection
from rollout import audit
from rollout.engine import EngineError, UpdateMode
from rollout.engine_http import HttpEngine
from rollout.http_routes import COMPLETIONS, GENERATE
from rollout.model import load_model
from rollout.types import Sampling, Span
from rollout.weights import Manifest
from tests.engines import assert_exact, needs_vllm
from tests.models import publish
from tests.servers import VllmServer, serving

pytestmark = [*needs_vllm, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent.parent
MODEL = find("tiny_policy/policy").absolute()
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
SHORT, LONG = Sampling(max_tokens=32), Sampling(max_tokens=400)

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
                max_context_tokens=512,
                needs_updates=updates,
            )
            engines.push_async_callback(engine.close)
            return engine

        yield one


def written(model: PreTrainedModel, path: Path, version: int) -> Manifest:
    return publish(path / f"{version}.safetensors", model.state_dict(), version)


async def sampled(server: VllmServer, count: int) -> None:
    """Wait until the server has sampled so many more tokens."""

    async def tokens() -> float:
        return (await asyncio.to_thread(server.counters))["vllm:generation_tokens_total"]

    before = await tokens()
    while await tokens() < before + count:
        pass


async def test_the_openai_route_of_a_fixed_server_gives_the_same(
    start: Start, fixed: VllmServer, old: PreTrainedModel
) -> None:
    engine = await start(fixed, updates=False)
    assert engine._found.route is COMPLETIONS
    greedy = await engine.generate(PROMPT, Sampling(max_tokens=64, temperature=0))
    ids = torch.tensor([[*PROMPT, *greedy.token_ids.tolist()]])
    with torch.inference_mode():
        expected = old(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].argmax(dim=-1)
    assert greedy.token_ids.tolist() == expected.tolist()
    for temperature in (0.6, 1.0):
        reply = await engine.generate(PROMPT, Sampling(max_tokens=64, temperature=temperature))
        assert reply.spans == [Span(0, 0, 64)]
        assert_exact(old, PROMPT, reply, temperature)


async def test_a_fixed_server_is_refused_for_training(start: Start, fixed: VllmServer) -> None:
    with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
        await start(fixed)


async def test_the_server_goes_back_to_the_models_weights_for_another_engine(
    start: Start, server: VllmServer, old: PreTrainedModel, new: PreTrainedModel, tmp_path: Path
) -> None:
    first = await start(server)
    assert first._found.route is GENERATE
    manifest = await asyncio.to_thread(written, new, tmp_path, 5)
    await first.update_weights(manifest, UpdateMode.RECOMPUTE)
    await first.close()
    second = await start(server)
    assert_exact(old, PROMPT, await second.generate(PROMPT, SHORT))


async def test_an_update_that_is_late_leaves_the_server_serving(
    start: Start, server: VllmServer, old: PreTrainedModel, new: PreTrainedModel, tmp_path: Path
) -> None:
    engine = await start(server)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    engine._options = HttpSection(urls=[server.url], update_timeout_s=1e-6)
    with pytest.raises(EngineError, match="update_timeout_s=1e-06"):
        await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    assert not (await asyncio.to_thread(server.answer, "/is_paused"))["is_paused"]
    assert_exact(old, PROMPT, await engine.generate(PROMPT, SHORT))


async def test_a_killed_server_that_comes_back_loses_nothing(
    start: Start, server: VllmServer, new: PreTrainedModel, tmp_path: Path
) -> None:
    impatient = await start(server, retry_s=0.5)
    engine = await start(server, retry_s=120.0)
    manifest = await asyncio.to_thread(written, new, tmp_path, 1)
    await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    running = [asyncio.create_task(engine.generate(PROMPT, LONG)) for _ in range(4)]
    await sampled(server, 40)
    await asyncio.to_thread(server.kill)
    with pytest.raises(EngineError, match=f"{server.url}: .*see that the server runs"):
        await impatient.generate(PROMPT, LONG)
    await asyncio.to_thread(server.start)
    for reply in await asyncio.gather(*running):
        assert reply.spans == [Span(1, 0, LONG.max_tokens)]
        assert_exact(new, PROMPT, reply)


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
