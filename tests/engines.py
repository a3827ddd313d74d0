"""The kinds of engines, started alike, and what tests ask of any of them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from configs.schema import (
    EngineSection,
    HttpSection,
    ModelSection,
    PoolSection,
    RolloutSection,
    RunConfig,
)
from rollout.engine import Engine, EngineError, Generation
from rollout.engines import start_engine
from rollout.model import load_model
from rollout.types import EngineStats, Sampling
from rollout.vllm_setup import check_installed
from rollout.weights import Manifest
from tests.models import plain_logprobs, publish, tiny_qwen3
from tests.servers import STEERED, VllmServer

VOCAB = 64
MAX_RUNNING = 16
CONTEXT = 2048
END_TOKEN = 7
"""What the model's files call the end of a text, and no engine may care about."""


def why_no_vllm() -> str:
    """Why nothing can be tested on vLLM here; empty where it can. Imports no vLLM."""
    try:
        check_installed()
    except EngineError as error:
        return str(error)
    return ""


needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(bool(why_no_vllm()), reason=why_no_vllm()),
    # Started anew or under load it takes 20 s each time.
    pytest.mark.timeout(240),
]

# Another kind is one more entry.
COMPUTING = ["local", pytest.param("vllm", marks=needs_vllm)]
KINDS = [*COMPUTING, pytest.param("http", marks=needs_vllm)]
"""The last is a server, and cannot promise all that the others do.

- A reply comes whole, when it has ended. `stats` counts the tokens of those that came, and calls all
  requests under way running: what a test needs to know of these, the server is asked (`Served.seen`).
  A reply that `close` cuts off has no tokens.
- `close` does not cut off an update, after which the server could stay paused.
- `pids` is empty: the server is somebody else's, and goes on when the engine is closed.

It computes as `vllm` does, so that number types and most architectures are tested there.
"""

each_kind = pytest.mark.parametrize("kind", KINDS)


@asynccontextmanager
async def started(
    kind: str,
    model: Path,
    *,
    dtype: str = "float32",
    context: int = 512,
    log: Path | None = None,
    **section: Any,
) -> AsyncIterator[Engine]:
    """An engine of `kind` that serves the model of a directory as version 0, closed in the end."""
    engine = await start(kind, model, dtype=dtype, context=context, log=log, **section)
    try:
        yield engine
    finally:
        await engine.close()


async def start(
    kind: str,
    model: Path,
    *,
    dtype: str = "float32",
    context: int = 512,
    log: Path | None = None,
    **section: Any,
) -> Engine:
    """The same, to be closed by the caller. Raises EngineError."""
    if kind == "http":
        # Nobody's, where none is given.
        section = {"http": HttpSection(urls=["http://127.0.0.1:9"])} | section
    config = RunConfig(
        model=ModelSection(path=str(model), dtype=dtype),  # pyright: ignore[reportArgumentType]
        pools={"none": PoolSection(source="none")},
        rollout=RolloutSection(max_context_tokens=context),
    )
    return await start_engine(
        config,
        str(model),
        section=EngineSection(kind=kind, **section),  # pyright: ignore[reportArgumentType]
        version=0,
        log=log or model.parent / "engine.log",
    )


def checkpoint(path: Path, **changes: Any) -> Path:
    """A model whose files recommend an end token, and a sampling that is nobody's business."""
    tiny_qwen3(path, vocab_size=VOCAB, max_positions=2048, **changes)
    for name, more in (
        ("config.json", {}),
        ("generation_config.json", {"do_sample": True, "temperature": 0.1, "top_k": 2}),
    ):
        file = path / name
        said = json.loads(file.read_bytes()) | {"eos_token_id": END_TOKEN} | more
        file.write_text(json.dumps(said))
    return path


@asynccontextmanager
async def serving(
    kind: str,
    folder: Path,
    paths: Sequence[Path],
    *,
    dtype: str = "float32",
    context: int = CONTEXT,
    max_running: int = MAX_RUNNING,
    **section: Any,
) -> "AsyncIterator[Served]":
    """An engine of `kind` on the first of some models, which was asked something; closed in the end.

    Of kind `http` on a server of its own. `folder` gets logs and weights.
    """
    async with AsyncExitStack() as stack:
        server = None
        if kind == "http":
            limits = (f"--max-num-seqs={max_running}", f"--max-model-len={context}")
            server = VllmServer(paths[0], folder / "server.log", arguments=(*STEERED, *limits))
            stack.push_async_callback(asyncio.to_thread, server.kill)
            await asyncio.to_thread(server.start)
            section["http"] = HttpSection(urls=[server.url])
        models = [await asyncio.to_thread(load_model, path, dtype) for path in paths]
        engine = await stack.enter_async_context(
            started(
                kind,
                paths[0],
                dtype=dtype,
                context=context,
                log=folder / "engine.log",
                max_running=max_running,
                **section,
            )
        )
        # What an engine makes for its first request is not of the test that comes first.
        await engine.generate([1], Sampling(max_tokens=1))
        yield Served(engine, folder, models, server)


class Served:
    """An engine, and the model that each of its versions is."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        models: Sequence[PreTrainedModel],
        server: VllmServer | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.models = models
        """The first is version 0."""
        self._server = server
        self._of_version = {0: models[0]}
        self._published = 0

    @property
    def model(self) -> PreTrainedModel:
        """The one that is served."""
        return self._of_version[self.engine.version]

    @property
    def long(self) -> int:
        """Tokens of a reply in whose middle something happens, once it is seen how far it is."""
        return 400 if self._server is None else 1200  # asking a server takes longer

    @property
    def replies_come_whole(self) -> bool:
        """As they do from a server."""
        return self._server is not None

    async def seen(self) -> EngineStats:
        """The engine's numbers, those of requests under way included, whoever knows them."""
        stats = self.engine.stats()
        if self._server is None:
            return stats
        found = await asyncio.to_thread(self._server.counters)
        return msgspec.structs.replace(
            stats,
            running=int(found["vllm:num_requests_running"]),
            waiting=int(found["vllm:num_requests_waiting"]),
            kv_used_frac=found["vllm:kv_cache_usage_perc"],
            sampled_tokens=int(found["vllm:generation_tokens_total"]),
        )

    async def until(self, is_so: Callable[[EngineStats], bool]) -> EngineStats:
        """Wait for what the engine does meanwhile; the numbers that were then seen."""
        seen = None
        try:
            async with asyncio.timeout(60):
                while not is_so(seen := await self.seen()):  # noqa: ASYNC110 nothing tells of it
                    await asyncio.sleep(0.001)
        except TimeoutError as error:
            raise AssertionError(f"it did not come to that: {seen}") from error
        return seen

    async def sampling(self, count: int, *, running: int = 0) -> None:
        """Wait until so many requests run, and then for `count` more tokens."""
        begun = await self.until(lambda seen: seen.running >= running)
        await self.until(lambda seen: seen.sampled_tokens >= begun.sampled_tokens + count)

    def publish(
        self, which: int, *, change: Callable[[dict[str, Tensor]], None] | None = None
    ) -> Manifest:
        """A next version, with the weights of a model; `change` is made to them before."""
        self._published += 1
        tensors = dict(self.models[which].state_dict())
        if change is not None:
            change(tensors)
        self._of_version[self._published] = self.models[which]
        return publish(self.folder / f"weights_{self._published}", tensors, self._published)

    def assert_exact(
        self, prompt: Sequence[int], reply: Generation, *, temperature: float = 1.0
    ) -> None:
        """Each span has the log-probs of a plain forward of its version over all that is before."""
        tokens = reply.token_ids.tolist()
        assert_covered(reply)
        for span in reply.spans:
            part = slice(span.start, span.end)
            model = self._of_version[span.version]
            expected = plain_logprobs(model, prompt, tokens, temperature=temperature)[part]
            assert_close(reply.logprobs[part], expected)


def assert_exact(
    model: PreTrainedModel, prompt: Sequence[int], reply: Generation, temperature: float = 1.0
) -> None:
    expected = plain_logprobs(model, prompt, reply.token_ids.tolist(), temperature=temperature)
    assert_close(reply.logprobs, expected)


def assert_close(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4, rtol=0)


def assert_covered(reply: Generation) -> None:
    """Spans are in order, without gaps, none empty, and no version comes back."""
    edges = [0, *(span.end for span in reply.spans)]
    assert [span.start for span in reply.spans] == edges[:-1]
    assert edges[-1] == len(reply.token_ids) == len(reply.logprobs)
    assert edges == sorted(set(edges))
    versions = [span.version for span in reply.spans]
    assert versions == sorted(set(versions))


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


def words(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(0, VOCAB, count).tolist()


def ragged(count: int) -> list[list[int]]:
    """Prompts of different lengths that share nothing."""
    rng = np.random.default_rng(count)
    return [words(rng, 3 + 4 * i) for i in range(count)]


def ask(
    engine: Engine,
    tasks: asyncio.TaskGroup,
    prompts: Sequence[list[int]],
    max_tokens: int,
    **more: Any,
) -> list[asyncio.Task[Generation]]:
    """Requests under way, one for each prompt."""
    return [
        tasks.create_task(engine.generate(prompt, Sampling(max_tokens=max_tokens, seed=i, **more)))
        for i, prompt in enumerate(prompts)
    ]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what an engine does meanwhile."""
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 nothing tells of the change of an engine's counters
            await asyncio.sleep(0.001)


async def sampling(engine: Engine, count: int, *, since: int) -> None:
    """Wait until an engine has sampled `count` more tokens than `since`."""
    await until(lambda: engine.stats().sampled_tokens >= since + count)
