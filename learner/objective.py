"""The loss as it is configured: a level, a correction and what holds it back, put together by name.

N: trained tokens of a micro-batch, flat. The parts are pure functions: `learner/ratio.py`,
`learner/correction.py`, `learner/loss.py`. Which go together is checked when the config is loaded.
"""

import math
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from configs.loss import LossSection
from learner import correction
from learner.correction import Terms
from learner.loss import DIVERGENCES, weighted_sum
from learner.ratio import LEVELS, geometric


@dataclass(slots=True, kw_only=True, frozen=True)
class Tokens:
    """What is known of the trained tokens of a micro-batch."""

    logprobs_N: Tensor
    """float32, with gradient, under the weights being trained."""
    entropy_N: Tensor
    """float32, of the distribution each was drawn from; with gradient where `entropy_coef` asks."""
    old_logprobs_N: Tensor
    """float32, under the weights that sampled it."""
    advantages_N: Tensor
    weights_N: Tensor
    """float32, what its loss is multiplied by; 0 leaves it out."""
    rows_N: Tensor
    """int64, the row of the micro-batch it belongs to."""
    lags_N: Tensor
    """int64, versions between the weights that sampled it and those of the batch."""
    mixed_kv_N: Tensor
    """bool, whether it was sampled on a cache that older weights filled."""
    proximal_logprobs_N: Tensor | None = None
    """Under the weights at the start of the batch, where `needs_proximal`."""
    reference_logprobs_N: Tensor | None = None
    """Under the initial weights, where `kl_coef` is above 0."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Loss:
    """Weighted sums over a micro-batch; those of all add up to the loss of the batch."""

    total: Tensor
    """A scalar with gradient."""
    policy: Tensor
    kl: Tensor | None
    """Divergence from the reference, before its coefficient; None without one."""
    terms: Terms


def needs_proximal(section: LossSection) -> bool:
    """Whether the weights at the start of a batch have to compute its log-probs first."""
    return section.correction == "decoupled" and section.proximal == "recomputed"


def objective(section: LossSection, tokens: Tokens, *, m2_bound: float = math.inf) -> Loss:
    """The loss of a micro-batch. `m2_bound` is that of the batch, for `m2po` alone."""
    terms = policy_terms(section, tokens, m2_bound=m2_bound)
    policy = weighted_sum(terms.loss_N, tokens.weights_N)
    total, kl = policy, None
    if section.kl_coef:
        assert tokens.reference_logprobs_N is not None
        divergence_N = DIVERGENCES[section.kl_estimator](
            tokens.logprobs_N, _near(tokens, tokens.reference_logprobs_N)
        )
        kl = weighted_sum(divergence_N, tokens.weights_N)
        total = total + section.kl_coef * kl
    if section.entropy_coef:
        total = total - section.entropy_coef * weighted_sum(tokens.entropy_N, tokens.weights_N)
    return Loss(total=total, policy=policy.detach(), kl=kl, terms=terms)


def policy_terms(section: LossSection, tokens: Tokens, *, m2_bound: float) -> Terms:
    """What the chosen correction makes of each token, at the chosen level."""
    new_N, advantages_N = tokens.logprobs_N, tokens.advantages_N
    old_N = _near(tokens, tokens.old_logprobs_N)
    own_N = new_N - old_N
    clip = {"clip_low": section.clip_low, "clip_high": section.clip_high}
    match section.correction:
        case "clip":
            # GSPO's ratio of a sequence is normalised by its length: of a product, hardly any row
            # would be within the bounds.
            is_row = section.level == "sequence"
            log_ratio_N = geometric(own_N, tokens.rows_N) if is_row else own_N
            return correction.clip(log_ratio_N, advantages_N, **clip)
        case "tis":
            log_ratio_N = LEVELS[section.level](own_N, tokens.rows_N)
            return correction.tis(log_ratio_N, new_N, advantages_N, cap=section.tis_cap)
        case "icepop":
            log_ratio_N = LEVELS[section.level](own_N, tokens.rows_N)
            low, high = section.icepop_low, section.icepop_high
            return correction.icepop(log_ratio_N, new_N, advantages_N, low=low, high=high)
        case "dppo":
            delta, cap = section.dppo_delta, section.dppo_cap
            return correction.dppo(new_N, old_N, advantages_N, delta=delta, cap=cap)
        case "cispo":
            low, high = section.cispo_low, section.cispo_high
            return correction.cispo(own_N, new_N, advantages_N, low=low, high=high)
        case "decoupled":
            proximal_N = tokens.proximal_logprobs_N
            if proximal_N is None:
                proximal_N = correction.interpolated_logprobs(new_N, old_N, tokens.lags_N)
            cap = section.decoupled_cap
            return correction.decoupled(new_N, old_N, proximal_N, advantages_N, **clip, cap=cap)
        case "m2po":
            return correction.m2po(own_N, new_N, advantages_N, bound=m2_bound)
        case "vespo":
            return correction.vespo(
                own_N,
                tokens.rows_N,
                new_N,
                advantages_N,
                k_pos=section.vespo_k_pos,
                lambda_pos=section.vespo_lambda_pos,
                k_neg=section.vespo_k_neg,
                lambda_neg=section.vespo_lambda_neg,
            )
        case "none":
            return correction.none(new_N, advantages_N)
        case _:
            assert_never(section.correction)


def _near(tokens: Tokens, others_N: Tensor) -> Tensor:
    """What other weights made of the tokens; of what is left out, what these do.

    Left out, a token may have any ratio: one that overflows would make its gradient 0 times infinity.
    """
    return torch.where(tokens.weights_N != 0, others_N, tokens.logprobs_N.detach())
