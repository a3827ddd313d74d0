"""`python launch.py bench engine`: the engines against their peers, and an actor against its engine.

- The embedded engine against transformers' `generate`: the same requests (ragged prompts, replies of
  different lengths) on one random model, each with one thread, in tokens per CPU second, so that other
  programs on the machine matter little. `generate` gets them all as one left-padded batch, the best it
  offers, and computes until the longest reply ends.
- vLLM against the embedded engine, on the same requests, in tokens per second on the wall.
- An actor that plays episodes against its engine that is asked the same requests bare: with the default
  run's policy, of half a million weights, and with a random one of ten million, as the share of a turn that
  is not the model's falls with its size.
- How long a weight update stalls an engine, in each mode.

What is about vLLM is left out where it is not installed.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from configs.schema import EngineSection
from rollout.bench import actor_loop, update_stalls
from rollout.engine import Engine, EngineError
from rollout.engine_local import LocalEngine
from rollout.engine_vllm import VllmEngine
from rollout.engines import start_engine
from rollout.model import load_model
from rollout.run import Checked
from rollout.stepper import Request
from rollout.types import Sampling
from rollout.vllm_setup import check_installed

_VOCAB_SIZE = 642
_CONTEXT_TOKENS = 256
_CONCURRENCY = (1, 8, 64, 128)
_VLLM_CONCURRENCY = (1, 8, 32, 64)

# Of ten million weights, with the default policy's tokens.
_LARGER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "layer_types": ["full_attention"] * 6,
    "num_attention_heads": 6,
    "head_dim": 64,
    "intermediate_size": 1024,
}
_LARGER_GROUPS = 8

# Best of this many runs, which take turns.
_REPEATS = 3

_KINDS = {"local": LocalEngine, "vllm": VllmEngine}


@dataclass(slots=True, kw_only=True, frozen=True)
class Rate:
    """Requested tokens per CPU second of each."""

    local: float
    generate: float

    @property
    def ratio(self) -> float:
        return self.local / self.generate


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything measured; what is about vLLM stays empty where it is not installed."""

    rates: dict[int, Rate]
    """By number of requests."""
    walls: dict[int, dict[str, float]] = field(default_factory=dict)
    """Tokens per second on the wall, by number of requests and kind of engine."""
    shares: dict[str, actor_loop.Share] = field(default_factory=dict)
    """By kind of engine, with `_10m` for the larger model."""
    stalls: dict[str, dict[str, float]] = field(default_factory=dict)
    """Seconds, by kind of engine and update mode."""


def main(arguments: list[str]) -> int:
    """Print tables; with --json also one JSON object on the last line."""
    parser = argparse.ArgumentParser(
        prog="launch.py bench engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    kinds, lacking = ["local"], ""
    try:
        check_installed()
        kinds.append("vllm")
    except EngineError as error:
        lacking = str(error)
    with tempfile.TemporaryDirectory() as folder:
        _make_model().save_pretrained(folder)
        results = Results(rates={n: _measure(Path(folder), n) for n in _CONCURRENCY})
        _show(_rate_lines(results.rates))
        if "vllm" in kinds:
            results.walls = asyncio.run(_compare(Path(folder)))
            _show(_wall_lines(results.walls))
    for kind in kinds:
        checked = actor_loop.load_recipe(kind)
        results.shares[kind], results.stalls[kind] = asyncio.run(_as_in_a_run(checked))
        results.shares[f"{kind}_10m"] = _share_of_larger(kind, Path(checked.config.model.path))
    _show(_share_lines(results.shares))
    _show(_stall_lines(results.stalls))
    if lacking:
        _show([f"vLLM was left out: {lacking}"])
    if options.json:
        _show([json.dumps(summary(results))])
    return 0


def summary(results: Results) -> dict[str, Any]:
    """Flat numbers for a machine; that against `generate` is the ratio of the most requests."""
    rates, walls = results.rates, results.walls
    ratios = {"local_over_hf_generate": rates[max(rates)].ratio}
    ratios |= {f"actor_over_raw_{kind}": one.ratio for kind, one in results.shares.items()}
    return {
        "benchmark": "engine",
        "ratios": ratios,
        "vllm_over_local": {str(n): of["vllm"] / of["local"] for n, of in walls.items()},
        "update_stall_s": results.stalls,
        "tokens_per_s": {str(n): of for n, of in walls.items()},
        "local_tokens_per_cpu_s": {str(n): rate.local for n, rate in rates.items()},
        "hf_generate_tokens_per_cpu_s": {str(n): rate.generate for n, rate in rates.items()},
    }


def _show(lines: list[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _rate_lines(rates: dict[int, Rate]) -> list[str]:
    lines = [f"{'requests':>8} {'local tok/cpu-s':>16} {'generate tok/cpu-s':>19} {'ratio':>7}"]
    for count, rate in rates.items():
        lines.append(f"{count:>8} {rate.local:>16.0f} {rate.generate:>19.0f} {rate.ratio:>7.2f}")
    return lines


def _wall_lines(walls: dict[int, dict[str, float]]) -> list[str]:
    lines = [f"{'requests':>8} {'vllm tok/s':>16} {'local tok/s':>19} {'ratio':>7}"]
    for count, of in walls.items():
        ratio = of["vllm"] / of["local"]
        lines.append(f"{count:>8} {of['vllm']:>16.0f} {of['local']:>19.0f} {ratio:>7.2f}")
    return lines


def _share_lines(shares: dict[str, actor_loop.Share]) -> list[str]:
    lines = [f"{'engine':>9} {'actor tok/s':>16} {'bare engine tok/s':>19} {'ratio':>7}"]
    for kind, share in shares.items():
        lines.append(f"{kind:>9} {share.actor:>16.0f} {share.raw:>19.0f} {share.ratio:>7.2f}")
    return lines


def _stall_lines(stalls: dict[str, dict[str, float]]) -> list[str]:
    lines = [
        f"stall of a weight update, ms, with {update_stalls.Load().requests} requests under way"
    ]
    for kind, modes in stalls.items():
        said = "  ".join(f"{mode} {stall_s * 1e3:.1f}" for mode, stall_s in modes.items())
        lines.append(f"{kind:>8}   {said}")
    return lines


async def _compare(path: Path) -> dict[int, dict[str, float]]:
    """Tokens per second of both engines on the same requests, which are served in turns."""
    section = EngineSection(max_running=max(_VLLM_CONCURRENCY), max_cached=0, threads=1)
    engines: dict[str, Engine] = {}
    for name, kind in _KINDS.items():
        engines[name] = await kind.start(
            path, dtype="float32", section=section, max_context_tokens=_CONTEXT_TOKENS
        )
    walls: dict[int, dict[str, float]] = {}
    for count in _VLLM_CONCURRENCY:
        best = dict.fromkeys(engines, 0.0)
        for _ in range(_REPEATS):
            for name, engine in engines.items():
                best[name] = max(best[name], await _wall(engine, _work(count)))
        walls[count] = best
    for engine in engines.values():
        await engine.close()
    return walls


async def _wall(engine: Engine, work: list[Request]) -> float:
    """Tokens per second on the wall."""
    asked = sum(one.sampling.max_tokens for one in work)
    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for one in work:
            tasks.create_task(engine.generate(one.prompt.tolist(), one.sampling))
    return asked / (time.perf_counter() - start)


async def _as_in_a_run(checked: Checked) -> tuple[actor_loop.Share, dict[str, float]]:
    """The actor's share of the default run's engine, and the stalls of that engine."""
    async with _engine_of(checked) as engine:
        share = await actor_loop.measure(checked, engine)
        return share, await update_stalls.measure(engine, Path(checked.config.model.path))


def _share_of_larger(kind: str, policy: Path) -> actor_loop.Share:
    """The actor's share of the same engine with a random model of ten million weights."""

    async def share(checked: Checked) -> actor_loop.Share:
        async with _engine_of(checked) as engine:
            # Fewer, as each takes longer; still more than the engine has room for at once.
            return await actor_loop.measure(checked, engine, num_groups=_LARGER_GROUPS)

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(policy, folder, dirs_exist_ok=True)
        torch.manual_seed(0)
        config = Qwen3Config.from_pretrained(policy, **_LARGER)
        Qwen3ForCausalLM(config).save_pretrained(folder)
        # What such a model says never ends an episode.
        checked = actor_loop.load_recipe(kind, f"model.path={folder}", "rollout.max_turns=3")
        return asyncio.run(share(checked))


@asynccontextmanager
async def _engine_of(checked: Checked) -> AsyncIterator[Engine]:
    """The engine of a run."""
    config = checked.config
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        engine = await start_engine(
            config, config.model.path, section=config.engine, version=0, log=log
        )
        try:
            yield engine
        finally:
            await engine.close()


def _make_model() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=_VOCAB_SIZE,
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=288,
            max_position_embeddings=_CONTEXT_TOKENS,
            pad_token_id=0,
            eos_token_id=None,
        )
    )


def _work(count: int) -> list[Request]:
    """Ragged prompts, and replies of different lengths."""
    rng = np.random.default_rng(count)
    work: list[Request] = []
    for seed in range(count):
        prompt = rng.integers(1, _VOCAB_SIZE, int(rng.integers(30, 71)), dtype=np.int32)
        sampling = Sampling(max_tokens=int(rng.integers(8, 57)), seed=seed)
        work.append(Request(prompt=prompt, sampling=sampling))
    return work


def _measure(path: Path, count: int) -> Rate:
    """Tokens per CPU second of both on `count` requests."""
    work = _work(count)
    asked = sum(one.sampling.max_tokens for one in work)
    model = load_model(path, "float32")
    local_s, generate_s = [], []
    for _ in range(_REPEATS):
        local_s.append(asyncio.run(_serve(path, work)))
        generate_s.append(_generate(model, work))
    return Rate(local=asked / min(local_s), generate=asked / min(generate_s))


async def _serve(path: Path, work: list[Request]) -> float:
    """CPU seconds of our engine to serve `work`, all requested at once."""
    engine = await LocalEngine.start(
        path,
        dtype="float32",
        section=EngineSection(max_running=max(_CONCURRENCY), max_cached=0, threads=1),
        max_context_tokens=_CONTEXT_TOKENS,
    )
    await engine.generate([1], Sampling(max_tokens=2))
    start = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for one in work:
            tasks.create_task(engine.generate(one.prompt.tolist(), one.sampling))
    cpu_s = time.process_time() - start
    await engine.close()
    return cpu_s


def _generate(model: Any, work: list[Request]) -> float:
    """CPU seconds of `generate`; `model` is loosely typed, as a mixin hides the method's type."""
    width = max(len(one.prompt) for one in work)
    ids = torch.zeros(len(work), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(work):
        ids[row, width - len(one.prompt) :] = torch.from_numpy(one.prompt)
        mask[row, width - len(one.prompt) :] = 1
    longest = max(one.sampling.max_tokens for one in work)
    start = time.process_time()
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=longest)
    return time.process_time() - start
