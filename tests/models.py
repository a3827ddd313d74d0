"""Tiny random checkpoints of the architectures we serve, as real Hugging Face directories.

Also what tests say about them: log-probs by a plain forward pass, and published weights.

Weights are larger than the libraries' initialisers make them, so that predictions are far from
uniform and a wrong cache, mask or position shows in the log-probs.
"""

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rollout.weights import Manifest, checksum

# Standard deviation of matrices: attention and logits are then clearly peaked at these sizes.
_STD = 0.25


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
