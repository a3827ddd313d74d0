"""Tiny random checkpoints of the architectures we serve, as real Hugging Face directories.

Also what tests say about them: log-probs by a plain forward pass, and published weights.

Weights are larger than the libraries' initialisers make them, so that predictions are far from
uniform and a wrong cache, mask or position shows in the log-probs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rollout.weights import Manifest, checksum

# Standard deviation of matrices: attention and logits are then clearly peaked at these sizes.
_STD = 0.25

# Tokens that a layer with a sliding window sees: fewer than the rows of tests have.
WINDOW = 7

_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
}


def tiny_qwen3(
    path: Path,
    *,
    seed: int = 0,
    vocab_size: int = 64,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    ffn: int = 64,
    max_positions: int = 512,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a Qwen3 checkpoint into `path` (made if missing) and return it. The head is untied."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
    )
    return _save(Qwen3ForCausalLM(config), path, seed=seed, dtype=dtype)


def tiny_qwen2(
    path: Path,
    *,
    seed: int = 0,
    vocab_size: int = 64,
    head_dim: int = 16,
    max_positions: int = 512,
    tied: bool = True,
) -> Path:
    """Write a Qwen2 checkpoint (biases in attention, tied head by default); returns `path`."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=4 * head_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=max_positions,
        tie_word_embeddings=tied,
    )
    return _save(Qwen2ForCausalLM(config), path, seed=seed, dtype=torch.float32)


def tiny_llama(
    path: Path,
    *,
    seed: int = 0,
    vocab_size: int = 64,
    head_dim: int = 16,
    max_positions: int = 512,
) -> Path:
    """Write a Llama checkpoint (as many KV heads as heads); returns `path`."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=4 * head_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=96,
        max_position_embeddings=max_positions,
    )
    return _save(LlamaForCausalLM(config), path, seed=seed, dtype=torch.float32)


def tiny_llama3(path: Path, *, seed: int = 0) -> Path:
    """Write a Llama 3 checkpoint (fewer KV heads than heads, scaled rotary positions)."""
    config = LlamaConfig(
        **_SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    )
    return _save(LlamaForCausalLM(config), path, seed=seed, dtype=torch.float32)


def tiny_mistral(path: Path, *, seed: int = 0) -> Path:
    """Write a Mistral checkpoint: every layer sees `WINDOW` tokens."""
    config = MistralConfig(**_SIZES, sliding_window=WINDOW)
    return _save(MistralForCausalLM(config), path, seed=seed, dtype=torch.float32)


def tiny_gemma2(path: Path, *, seed: int = 0) -> Path:
    """Write a Gemma 2 checkpoint: half of the layers see `WINDOW` tokens; scores and logits are capped."""
    config = Gemma2Config(
        **_SIZES,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    )
    return _save(Gemma2ForCausalLM(config), path, seed=seed, dtype=torch.float32)


def tiny_gemma3(path: Path, *, seed: int = 0) -> Path:
    """Write a Gemma 3 checkpoint: a layer that sees `WINDOW` tokens, and one that sees all."""
    config = Gemma3TextConfig(
        **_SIZES,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _save(Gemma3ForCausalLM(config), path, seed=seed, dtype=torch.float32)


def plain_logprobs(
    model: PreTrainedModel,
    prompt: Sequence[int],
    reply: Sequence[int],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """[N] log-probs of the N reply tokens by one plain forward pass of `model`, without a cache."""
    ids = torch.tensor([[*prompt, *reply]])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]


def publish(path: Path, tensors: dict[str, Tensor], version: int) -> Manifest:
    """Write `tensors` to the file `path` as version `version`."""
    # Cloned: safetensors refuses tensors that share memory, as a tied head does.
    data = safetensors.torch.save({name: one.clone() for name, one in tensors.items()})
    path.write_bytes(data)
    return Manifest(
        version=version,
        step=version,
        path=str(path),
        num_bytes=len(data),
        checksum=checksum(data),
    )


def _save(model: PreTrainedModel, path: Path, *, seed: int, dtype: torch.dtype) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm scales (one dimension, ones) stay near one; biases and matrices are random.
            base = parameter.mean() if parameter.ndim == 1 else 0.0
            values = base + _STD * torch.randn(parameter.shape, generator=generator)
            parameter.data = values.to(dtype)
    model.save_pretrained(path)
    return path
