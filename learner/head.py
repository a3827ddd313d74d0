"""Log-probs at chosen positions only: the full [B, T, V] logits are never built.

B: rows. T: tokens. N: trained tokens of the micro-batch. D: width. V: vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# Logits computed at once: 64 MiB in float32. A head that needs more is cut into chunks.
CHUNK_LOGITS = 2**24


@dataclass(slots=True, kw_only=True, frozen=True)
class TokenLogprobs:
    """Of the N masked tokens in row-major order."""

    logprobs_N: Tensor
    """float32, with gradient, of the softmax at the sampling temperature."""
    entropy_N: Tensor
    """float32, of the same distribution, in nats; with gradient only where it was asked for."""


def token_logprobs(
    model: PreTrainedModel,
    ids_BT: Tensor,
    mask_BT: Tensor,
    *,
    temperature: float,
    chunk_logits: int = CHUNK_LOGITS,
    entropy_grad: bool = False,
) -> TokenLogprobs:
    """Log-probs of the masked tokens, each given the tokens before it in its row.

    Rows must be padded on the right, and `mask_BT[:, 0]` must be False. The head is computed in
    float32 whatever the weights' type: bfloat16 logits carry an error of some hundredths.
    """
    # The hidden state at t - 1 predicts token t: hidden states lose their last position, tokens
    # and mask their first.
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1]
    mask_BT = mask_BT[:, 1:]
    hidden_ND = hidden_BTD[mask_BT]
    targets_N = ids_BT[:, 1:][mask_BT]
    head = output_head(model)
    num_chunk = max(1, chunk_logits // head.weight.shape[0])
    if len(targets_N) <= num_chunk:
        logprobs_N, entropy_N = _head_logprobs(
            hidden_ND, targets_N, head, temperature, entropy_grad
        )
        return TokenLogprobs(logprobs_N=logprobs_N, entropy_N=entropy_N)
    # Recomputed in the backward pass: otherwise the logits of all chunks would be kept for it.
    chunks = [
        checkpoint(
            _head_logprobs, hidden, targets, head, temperature, entropy_grad, use_reentrant=False
        )
        for hidden, targets in zip(
            hidden_ND.split(num_chunk), targets_N.split(num_chunk), strict=True
        )
    ]
    return TokenLogprobs(
        logprobs_N=torch.cat([logprobs for logprobs, _ in chunks]),
        entropy_N=torch.cat([entropy for _, entropy in chunks]),
    )


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that makes logits; raises ValueError for a model without a linear one."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} has no linear output head (found {type(head).__name__}): "
            "model.path must be a causal language model"
        )
    return head


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ValueError for a model whose logits are more than its head of its hidden states.

    Some architectures scale or cap the logits: their log-probs would silently be wrong here.
    """
    head = output_head(model)
    ids_BT = torch.arange(4, device=head.weight.device)[None] % head.weight.shape[0]
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    if not torch.allclose(head(hidden_BTD).float(), logits_BTV.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the output head (scaling or "
            "capping), which the learner does not reproduce: use another model in model.path"
        )


def _head_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    head: nn.Linear,
    temperature: float,
    entropy_grad: bool,
) -> tuple[Tensor, Tensor]:
    bias = None if head.bias is None else head.bias.float()
    logits_NV = functional.linear(hidden_ND.float(), head.weight.float(), bias) / temperature
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
    return logprobs_NV.gather(1, targets_N[:, None])[:, 0], entropy_N
