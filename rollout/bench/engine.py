"""`python launch.py bench engine`: the embedded engine against transformers' `generate`.

Both serve the same requests (ragged prompts, replies of different lengths) on one random model, each
with one thread, in one run. CPU time is counted, so that other programs on the machine matter little. `generate` gets them all as one
left-padded batch, the best it offers, and computes until the longest reply ends.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from configs.schema import EngineSection
from rollout.engine_local import LocalEngine
from rollout.model import load_model
from rollout.stepper import Request
from rollout.types import Sampling

_VOCAB_SIZE = 642
_CONTEXT_TOKENS = 256
_CONCURRENCY = (1, 8, 64, 128)

# Best of this many runs, which take turns.
_REPEATS = 3


@dataclass(slots=True, kw_only=True, frozen=True)
class Rate:
    """Requested tokens per CPU second of each."""

    local: float
    generate: float

    @property
    def ratio(self) -> float:
        return self.local / self.generate


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="launch.py bench engine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        _make_model().save_pretrained(folder)
        results = {count: _measure(Path(folder), count) for count in _CONCURRENCY}
    lines = [f"{'requests':>8} {'local tok/cpu-s':>16} {'generate tok/cpu-s':>19} {'ratio':>7}"]
    for count, rate in results.items():
        lines.append(f"{count:>8} {rate.local:>16.0f} {rate.generate:>19.0f} {rate.ratio:>7.2f}")
    if options.json:
        lines.append(json.dumps(summary(results)))
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def summary(results: dict[int, Rate]) -> dict[str, Any]:
    """Flat numbers for a machine; the ratio is that of the most requests."""
    return {
        "benchmark": "engine",
        "ratios": {"local_over_hf_generate": results[max(results)].ratio},
        "local_tokens_per_cpu_s": {str(n): rate.local for n, rate in results.items()},
        "hf_generate_tokens_per_cpu_s": {str(n): rate.generate for n, rate in results.items()},
    }


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


def _measure(path: Path, count: int) -> Rate:
    """Tokens per CPU second of both on `count` requests."""
    rng = np.random.default_rng(count)
    work: list[Request] = []
    for seed in range(count):
        prompt = rng.integers(1, _VOCAB_SIZE, int(rng.integers(30, 71)), dtype=np.int32)
        sampling = Sampling(max_tokens=int(rng.integers(8, 57)), seed=seed)
        work.append(Request(prompt=prompt, sampling=sampling))
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
