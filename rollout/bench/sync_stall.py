"""How long the embedded engine stands still while it gets new weights of one size."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from configs.schema import EngineSection
from rollout.bench import sync_transfer, update_stalls
from rollout.bench.same_weights import shared
from rollout.bench.update_stalls import Load
from rollout.engine import UpdateMode
from rollout.engine_local import LocalEngine
from rollout.weights import Manifest, checksum

_CONTEXT_TOKENS = 256


@dataclass(slots=True, kw_only=True, frozen=True)
class Stall:
    """Medians, in seconds."""

    copy_s: float
    """The same bytes, once through memory."""
    keep_s: float
    """Requests go on with what was computed for them."""
    recompute_s: float
    """Their prompts and replies so far are computed anew."""


async def measure(size_mb: int) -> Stall:
    """Start an engine with random weights of this size, and update it while it generates."""
    load = Load()
    if size_mb >= 20:  # a token takes longer
        load = Load(requests=4, updates=3, reply_tokens=24 if size_mb < 1000 else 8)
    with tempfile.TemporaryDirectory(dir=shared()) as folder:
        manifest = _make_model(size_mb, Path(folder))
        engine = await LocalEngine.start(
            Path(folder),
            dtype="float32",
            section=EngineSection(max_running=load.requests, max_cached=0, threads=1),
            max_context_tokens=_CONTEXT_TOKENS,
        )
        try:
            stalls = {
                mode: await update_stalls.stall(engine, manifest, mode, load)
                for mode in (UpdateMode.KEEP, UpdateMode.RECOMPUTE)
            }
        finally:
            await engine.close()
    timer = sync_transfer.Timer()
    size = round(manifest.num_bytes / 1e6)
    sync_transfer.time_copies(sync_transfer.make_tensors(size), 5, timer)
    return Stall(
        copy_s=timer.median("copy"),
        keep_s=stalls[UpdateMode.KEEP],
        recompute_s=stalls[UpdateMode.RECOMPUTE],
    )


def _make_model(size_mb: int, folder: Path) -> Manifest:
    """Save a model of about this size; its own file is a version to load."""
    torch.manual_seed(0)
    # A layer has 13 matrices as large as the square of the hidden size.
    hidden = next(
        h for h in (96, 640, 1536, 2560) if 13 * h * h * 16 * 4 > size_mb * 900_000 or h == 2560
    )
    layers = max(1, round(size_mb * 1_000_000 / (13 * hidden * hidden * 4)))
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=512,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            head_dim=32,
            intermediate_size=3 * hidden,
            max_position_embeddings=_CONTEXT_TOKENS,
            pad_token_id=0,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder, max_shard_size="100GB")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    return Manifest(version=0, step=0, path=str(file), num_bytes=len(data), checksum=checksum(data))
