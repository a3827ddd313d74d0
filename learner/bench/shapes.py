"""Models to measure: random weights in the shapes of real ones."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config


@dataclass(slots=True, kw_only=True, frozen=True)
class Shape:
    """What of a Qwen2 config decides how fast it is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool


# The last three are those of the published checkpoints.
SHAPES = {
    "tiny": Shape(hidden=96, layers=2, heads=4, kv_heads=2, ffn=288, vocab=640, tied=True),
    "small": Shape(hidden=256, layers=4, heads=4, kv_heads=2, ffn=768, vocab=16384, tied=True),
    "qwen2.5-0.5b": Shape(
        hidden=896, layers=24, heads=14, kv_heads=2, ffn=4864, vocab=151936, tied=True
    ),
    "qwen2.5-1.5b": Shape(
        hidden=1536, layers=28, heads=12, kv_heads=2, ffn=8960, vocab=151936, tied=True
    ),
    "qwen2.5-7b": Shape(
        hidden=3584, layers=28, heads=28, kv_heads=4, ffn=18944, vocab=152064, tied=False
    ),
}

# Dense bfloat16 operations a second of a device, by a part of its name; from the makers' data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def make_model(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The same weights at every call; in eval mode."""
    shape = SHAPES[name]
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.ffn,
        max_position_embeddings=32768,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def step_flops(model: nn.Module, name: str, *, tokens: int, targets: int, pairs: int) -> float:
    """Multiplications and additions that a step needs at least: nothing is counted twice.

    `pairs` are those of a token with one that it attends to. Backward takes twice what forward does.
    """
    shape = SHAPES[name]
    head = shape.vocab * shape.hidden
    embeddings = head if shape.tied else 2 * head
    body = sum(parameter.numel() for parameter in model.parameters()) - embeddings
    return 6.0 * (body * tokens + head * targets + 2 * shape.layers * shape.hidden * pairs)


def peak_flops(device: torch.device) -> float | None:
    """None where the device is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_FLOPS.items() if part in name), None)
