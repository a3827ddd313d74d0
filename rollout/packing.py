"""Whether a model computes the same packed as it does alone.

The engine replaces a model's attention by `rollout.attention`, which knows nothing of sliding windows,
soft caps or sinks. Rather than keep a list of architectures, each model proves itself once at start.
"""

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from rollout.attention import ATTENTION, KvStore, plan
from rollout.engine import EngineError

# Largest difference of log-probs that rounding explains; a wrong mask or position gives far more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}

# Tokens of the probe; the second part is computed on the cache of the first.
_PARTS = (5, 4, 1)


def use_packing(model: PreTrainedModel) -> None:
    """Switch `model` to packed attention for good; raises EngineError when that changes its results."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if windows:
        raise EngineError(f"the local engine serves full attention only, not {sorted(windows)}")
    total = sum(_PARTS)
    tokens = torch.arange(1, total + 1)[None] % config.vocab_size
    with torch.inference_mode():
        expected = _logprobs(model(input_ids=tokens, use_cache=False).logits[0, -1])
        model.set_attn_implementation(ATTENTION)
        _fuse_norms(model)
        found = _logprobs(_packed(model, tokens))
    difference = float((expected - found).abs().max())
    # `not <=` also refuses NaN.
    if not difference <= _TOLERANCE[model.dtype]:
        raise EngineError(
            f"{type(model).__name__} computes differently with packed attention (log-probs differ "
            f"by {difference:.2g}): the local engine cannot serve this architecture"
        )


def _fuse_norms(model: PreTrainedModel) -> None:
    """Let RMS norms run as one operation instead of six, where that gives the same.

    In a small model half of a step goes into starting operations.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        eps = getattr(module, "variance_epsilon", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or eps is None:
            continue
        probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0))
        fused = partial(_rms_norm, module, eps)
        if torch.allclose(module(probe.to(weight)), fused(probe.to(weight)), rtol=1e-5, atol=1e-6):
            module.forward = fused


def _rms_norm(module: nn.Module, eps: float, hidden: Tensor) -> Tensor:
    weight = module.weight
    return F.rms_norm(hidden, weight.shape, weight, eps)  # type: ignore[arg-type]  # a Parameter


def make_store(model: PreTrainedModel, *, num_rows: int, max_tokens: int) -> KvStore:
    """An empty store with the model's layers and heads."""
    config = model.config
    heads = config.num_attention_heads
    return KvStore(
        num_layers=config.num_hidden_layers,
        num_rows=num_rows,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        max_tokens=max_tokens,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        dtype=model.dtype,
    )


def head_weight(model: PreTrainedModel) -> Tensor:
    """[V, E] the output head in float32: its own storage where it is float32, else a copy."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), f"{type(model).__name__} has no linear output head"
    return head.weight.detach().float()


def _packed(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [V] after `tokens` [1, total], computed in parts on a cache."""
    store = make_store(model, num_rows=1, max_tokens=tokens.shape[1])
    start, hidden = 0, torch.empty(0)
    for count in _PARTS:
        work = plan(store, np.array([0]), np.array([start]), np.array([count]))
        part = slice(start, start + count)
        hidden = model.get_decoder()(
            input_ids=tokens[:, part],
            position_ids=torch.arange(start, start + count)[None],
            use_cache=False,
            plan=work,
        ).last_hidden_state[0, -1]
        start += count
    return F.linear(hidden.float(), head_weight(model))


def _logprobs(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1)
