"""Log-probs of chosen tokens only, in chunks: logits of [tokens, vocabulary] are never built whole.

P: tokens of a packed micro-batch. N: its trained tokens. D: width. V: vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.attention import hidden_states
from learner.layout import Packed

# Logits computed at once: 64 MiB in float32; on a GPU, where few rows at a time are slow, 512 MiB.
CHUNK_LOGITS, CHUNK_LOGITS_CUDA = 2**24, 2**27


@dataclass(slots=True, kw_only=True, frozen=True)
class TokenLogprobs:
    """Of the N trained tokens, in the order of the packed rows."""

    logprobs_N: Tensor
    """float32, with gradient, of the softmax at the sampling temperature."""
    entropy_N: Tensor
    """float32, with gradient: of the same distribution, in nats."""


def token_logprobs(
    model: PreTrainedModel,
    packed: Packed,
    *,
    temperature: float,
    chunk_logits: int | None = None,
) -> TokenLogprobs:
    """Log-probs of the trained tokens, each given the tokens before it in its row.

    `model` must use packing (`learner.attention.use_packing`). The head is computed in float32
    whatever the weights' type: bfloat16 logits carry an error of some hundredths.
    """
    hidden_PD = hidden_states(model, packed)
    head = output_head(model)
    if chunk_logits is None:
        chunk_logits = CHUNK_LOGITS_CUDA if hidden_PD.is_cuda else CHUNK_LOGITS
    logprobs_N, entropy_N = _HeadLogprobs.apply(
        hidden_PD.index_select(0, packed.sources_N),
        head.weight,
        head.bias,
        packed.targets_N,
        temperature,
        _cap(model),
        max(1, chunk_logits // head.weight.shape[0]),
    )
    return TokenLogprobs(logprobs_N=logprobs_N, entropy_N=entropy_N)


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

    A cap that the config names is reproduced. Some architectures scale logits: their log-probs
    would silently be wrong here.
    """
    head = output_head(model)
    ids_BT = torch.arange(4, device=head.weight.device)[None] % head.weight.shape[0]
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    expected_BTV = _capped(head(hidden_BTD).float(), _cap(model))
    if not torch.allclose(expected_BTV, logits_BTV.float(), rtol=1e-2, atol=1e-2):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the output head, which the learner "
            "does not reproduce: use another model in model.path"
        )


def _cap(model: PreTrainedModel) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _capped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


class _HeadLogprobs(torch.autograd.Function):
    """Log-prob of the target and entropy, of each of N hidden states.

    With l the logits and p their softmax: d log p_t / dl = [. = t] - p and
    d entropy / dl = -p (log p + entropy). A chunk's logits are computed again in the backward pass,
    except where there is but one chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        cap: float | None,
        num_chunk: int,
    ) -> tuple[Tensor, Tensor]:
        head = _Head(weight_VD, bias_V, temperature, cap)
        logprobs, entropies, kept = [], [], None
        chunks = zip(hidden_ND.split(num_chunk), targets_N.split(num_chunk), strict=True)
        for hidden, targets in chunks:
            logprobs_NV = head.logits(hidden).log_softmax(dim=-1)
            logprobs.append(logprobs_NV.gather(1, targets[:, None])[:, 0])
            entropies.append(-logprobs_NV.exp().mul_(logprobs_NV).sum(dim=-1))
            if cap is None and len(targets_N) <= num_chunk:
                kept = logprobs_NV
        logprobs_N, entropy_N = torch.cat(logprobs), torch.cat(entropies)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, entropy_N, kept)
        ctx.settings = temperature, cap, num_chunk
        ctx.set_materialize_grads(False)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_N, grad_entropy_N = grads
        hidden_ND, weight_VD, bias_V, targets_N, entropy_N, kept = ctx.saved_tensors
        temperature, cap, num_chunk = ctx.settings
        head = _Head(weight_VD, bias_V, temperature, cap)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight, grad_bias = None, None
        for start in range(0, len(targets_N), num_chunk):
            part = slice(start, start + num_chunk)
            logits_NV = head.logits(hidden_ND[part]) if kept is None else None
            logprobs_NV = kept if logits_NV is None else logits_NV.log_softmax(dim=-1)
            assert logprobs_NV is not None
            grads_NV = _logits_gradient(
                logprobs_NV,
                targets_N[part],
                None if grad_N is None else grad_N[part],
                None if grad_entropy_N is None else grad_entropy_N[part],
                entropy_N[part],
            )
            if cap is not None:
                assert logits_NV is not None
                grads_NV.mul_(logits_NV.mul_(temperature / cap).square_().neg_().add_(1.0))
            grads_NV.div_(temperature)
            grad_hidden_ND[part] = head.mm(grads_NV, head.weight)
            if ctx.needs_input_grad[1]:
                more = head.mm(grads_NV.t(), hidden_ND[part])
                grad_weight = more if grad_weight is None else grad_weight.add_(more)
            if bias_V is not None:
                more = grads_NV.sum(dim=0)
                grad_bias = more if grad_bias is None else grad_bias.add_(more)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_VD.dtype)
        if grad_bias is not None and bias_V is not None:
            grad_bias = grad_bias.to(bias_V.dtype)
        return grad_hidden_ND, grad_weight, grad_bias, None, None, None, None


def _logits_gradient(
    logprobs_NV: Tensor,
    targets_N: Tensor,
    grad_N: Tensor | None,
    grad_entropy_N: Tensor | None,
    entropy_N: Tensor,
) -> Tensor:
    """[N, V] gradient at the logits, from those at the log-probs and at the entropy."""
    probs_NV = logprobs_NV.exp()
    if grad_entropy_N is None:
        grads_NV = torch.zeros_like(probs_NV)
    else:
        grads_NV = (logprobs_NV + entropy_N[:, None]).mul_(probs_NV)
        grads_NV.mul_(-grad_entropy_N[:, None])
    if grad_N is not None:
        grads_NV.addcmul_(probs_NV, grad_N[:, None], value=-1)
        grads_NV.scatter_add_(1, targets_N[:, None], grad_N[:, None])
    return grads_NV


class _Head:
    """The matrix products of a head, in float32 or wider."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, temperature: float, cap: float | None
    ) -> None:
        self._dtype = torch.promote_types(weight.dtype, torch.float32)
        # Tensor cores multiply halves exactly and add them up in float32: nothing need be widened.
        self._is_mixed = weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16)
        self._narrow = weight.dtype
        self.weight = weight if self._is_mixed else weight.to(self._dtype)
        self._bias = None if bias is None else bias.to(self._dtype)
        self._temperature = temperature
        self._cap = cap

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """[N, V], capped and divided by the temperature."""
        logits_NV = self.mm(hidden_ND, self.weight.t())
        if self._bias is not None:
            logits_NV += self._bias
        return _capped(logits_NV, self._cap).div_(self._temperature)

    def mm(self, one: Tensor, other: Tensor) -> Tensor:
        if self._is_mixed:
            return torch.mm(one.to(self._narrow), other.to(self._narrow), out_dtype=torch.float32)
        return one.to(self._dtype) @ other.to(self._dtype)
