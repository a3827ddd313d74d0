"""What a loss does about data of other weights: pure functions, one per `learner.loss.correction`.

N: trained tokens of a micro-batch, flat. `log_ratio_N` is log pi - log mu: under the weights being
trained against those that sampled, at a level of `learner/ratio.py`; `r` is its exponential and `A` the
advantage. Each function gives the loss of every token, before it is weighted by what `AGGREGATIONS` of
`learner/loss.py` fixed: a token that is left out has loss 0 and changes no denominator. On the sampler's
own weights (`r` = 1 everywhere) each has the gradient `-A` of the plain policy gradient.

Where a formula stops the gradient of a weight `w`, the loss is `-sg(w) A pi / sg(pi)`: its gradient is
`-w A grad log pi` and its value `-w A`, which can be compared between corrections.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.ratio import row_sums


@dataclass(slots=True, kw_only=True, frozen=True)
class Terms:
    """Of each token: its loss, and what the correction did to it."""

    loss_N: Tensor
    clipped_N: Tensor
    """bool: its ratio was held at a bound, which for `clip` and `decoupled` takes its gradient."""
    masked_N: Tensor
    """bool: it was left out."""


def none(logprobs_N: Tensor, advantages_N: Tensor) -> Terms:
    """`-A log pi`: no correction; stale data push as if they were fresh.

    Source: REINFORCE, Williams 1992, with the group as baseline.
    """
    return _weighted(torch.ones_like(logprobs_N), logprobs_N, advantages_N)


def clip(log_ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float) -> Terms:
    """`-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`, against the sampler's own log-probs.

    The clip then bounds how far stale data may push. With the geometric mean of a row's ratios this is
    GSPO. Sources:
    PPO, arXiv 1707.06347, equation 7; separate bounds, DAPO, arXiv 2503.14476, section 3.1; GSPO,
    arXiv 2507.18071, equations 5 and 13, with 3e-4 and 4e-4 (section 5.1).
    """
    ratio_N = log_ratio_N.exp()
    bounded_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    return Terms(
        loss_N=-torch.minimum(ratio_N * advantages_N, bounded_N * advantages_N),
        clipped_N=_beyond(ratio_N, advantages_N, low=1.0 - clip_low, high=1.0 + clip_high),
        masked_N=_no(ratio_N),
    )


def tis(log_ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, *, cap: float) -> Terms:
    """`-sg(min(r, cap)) A log pi`: importance weights, truncated above.

    Sources: truncated importance sampling for RL of language models, F. Yao et al., "Your efficient
    RL framework secretly brings you off-policy RL training", 2025, with cap 2; one-sided on the whole
    ratio, AIPO in LlamaRL, arXiv 2505.24034, with caps of 2 to 10.
    """
    ratio_N = log_ratio_N.detach().exp()
    terms = _weighted(ratio_N.clamp(max=cap), logprobs_N, advantages_N)
    return _marked(terms, clipped_N=ratio_N > cap)


def icepop(
    log_ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, *, low: float, high: float
) -> Terms:
    """`-sg(r) A log pi` where `low <= r <= high`, and nothing elsewhere, whatever the sign of A.

    Source: IcePop, "Every step evolves", arXiv 2510.18855, with 0.5 and 5; there the ratio is of the
    trainer's own older weights to the sampler, which are the same with one update of a batch.
    """
    ratio_N = log_ratio_N.detach().exp()
    # `not inside` also leaves out what is no number.
    masked_N = ~((ratio_N >= low) & (ratio_N <= high))
    terms = _weighted(ratio_N.masked_fill(masked_N, 0.0), logprobs_N, advantages_N)
    return _marked(terms, masked_N=masked_N)


def dppo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    delta: float,
    cap: float,
) -> Terms:
    """`-min(r, cap) A log pi` unless the probability moved by over `delta` the way A pushes it.

    Left out: A > 0 and `pi - mu > delta`, A < 0 and `mu - pi > delta`: the binary total variation in
    place of the ratio, which says little of rare tokens. Source: DPPO, arXiv 2602.04879, its binary
    approximation; delta 0.2 and cap 10 as in the implementations of prime-rl and TRL. The cap bounds
    what a token can weigh that was all but impossible to its sampler.
    """
    new_N, old_N = logprobs_N.detach(), old_logprobs_N
    moved_N = new_N.exp() - old_N.exp()
    masked_N = ((advantages_N > 0) & (moved_N > delta)) | ((advantages_N < 0) & (moved_N < -delta))
    ratio_N = (new_N - old_N).exp()
    weight_N = ratio_N.clamp(max=cap).masked_fill(masked_N, 0.0)
    terms = _weighted(weight_N, logprobs_N, advantages_N)
    return _marked(terms, clipped_N=(ratio_N > cap) & ~masked_N, masked_N=masked_N)


def cispo(
    log_ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, *, low: float, high: float
) -> Terms:
    """`-sg(clip(r, 1 - low, 1 + high)) A log pi`: weights are bounded, every token keeps a gradient.

    With `low` = 1 it is `tis` with another cap. Sources: CISPO, MiniMax-M1, arXiv 2506.13585,
    equations 4 and 5, without a lower bound; `1 + high` = 5, ScaleRL, arXiv 2510.13786.
    """
    ratio_N = log_ratio_N.detach().exp()
    bounded_N = ratio_N.clamp(1.0 - low, 1.0 + high)
    terms = _weighted(bounded_N, logprobs_N, advantages_N)
    return _marked(terms, clipped_N=ratio_N != bounded_N)


def decoupled(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    proximal_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    cap: float,
) -> Terms:
    """`-sg(rho) min(u A, clip(u, 1 - clip_low, 1 + clip_high) A)`, `u` = pi / prox, `rho` = prox / mu.

    The clip is centred on a proximal policy and not on the sampler; tokens with `rho > cap` are left
    out. Sources: decoupled PPO, arXiv 2110.00641; AReaL, arXiv 2505.24298, equation 5, whose
    implementation drops above 5.
    """
    behind_N = (proximal_logprobs_N.detach() - old_logprobs_N).exp()
    masked_N = ~(behind_N <= cap)
    # What is left out stands at the centre: a ratio to it that overflows would spoil the gradient.
    proximal_N = torch.where(masked_N, logprobs_N, proximal_logprobs_N).detach()
    terms = clip(logprobs_N - proximal_N, advantages_N, clip_low=clip_low, clip_high=clip_high)
    return Terms(
        loss_N=behind_N.masked_fill(masked_N, 0.0) * terms.loss_N,
        clipped_N=terms.clipped_N & ~masked_N,
        masked_N=masked_N,
    )


def interpolated_logprobs(logprobs_N: Tensor, old_logprobs_N: Tensor, lags_N: Tensor) -> Tensor:
    """A proximal policy for `decoupled` that no pass computes: without gradient.

    `alpha log mu + (1 - alpha) log pi`, alpha = 1 / lag and 0 at lag 0: the weights one version back,
    as if the log-prob had moved evenly. At lag 1 this is the sampler, and the loss that of `clip`.
    Source: A-3PO, arXiv 2512.06547.
    """
    alpha_N = lags_N.to(logprobs_N.dtype).clamp(min=1.0).reciprocal().where(lags_N > 0, 0.0)
    new_N = logprobs_N.detach()
    return new_N + alpha_N * (old_logprobs_N - new_N)


def m2po(log_ratio_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor, *, bound: float) -> Terms:
    """`-r A log pi` without the tokens whose `(log r)^2` is over `bound` and which A pushes further.

    `bound` is `m2_bound` of the whole batch, so that micro-batches do not matter. Source: M2PO, arXiv 2510.01161, algorithm 1.
    """
    log_ratio_N = log_ratio_N.detach()
    masked_N = _outward(log_ratio_N, advantages_N) & ~(log_ratio_N.double().square() <= bound)
    weight_N = log_ratio_N.exp().masked_fill(masked_N, 0.0)
    return _marked(_weighted(weight_N, logprobs_N, advantages_N), masked_N=masked_N)


@torch.no_grad()
def m2_bound(log_ratio_N: Tensor, advantages_N: Tensor, *, budget: float) -> float:
    """The `(log r)^2` up to which tokens may stay, so that what stays has a mean within `budget`.

    Only tokens that their advantage pushes further from the sampler (A > 0 and r > 1, or A < 0 and
    r < 1) are counted and may be left out, as a clip would: the largest go first. Infinite when all
    may stay. N: every trained token of the batch. Source: M2PO, arXiv 2510.01161, algorithm 1, with
    budget 0.04.
    """
    outward_N = _outward(log_ratio_N, advantages_N)
    squares_M = log_ratio_N[outward_N].double().square().sort().values
    counts_M = torch.arange(1, squares_M.numel() + 1, device=squares_M.device)
    num_kept = int((squares_M.cumsum(0) / counts_M <= budget).sum())
    if num_kept == squares_M.numel():
        return math.inf
    # Half way to the first that must go: another pass over the same tokens may round otherwise.
    last_kept = squares_M[num_kept - 1].item() if num_kept else 0.0
    return (last_kept + squares_M[num_kept].item()) / 2.0


def vespo(
    log_ratio_N: Tensor,
    rows_N: Tensor,
    logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    k_pos: float,
    lambda_pos: float,
    k_neg: float,
    lambda_neg: float,
) -> Terms:
    """`-sg(phi(W)) A log pi`, `phi(W) = W^k exp(lambda (1 - W))`, W the product of the row's ratios.

    A smooth weight of the whole row, 1 at W = 1, that falls to 0 on both sides; k and lambda differ by
    the sign of A. `log_ratio_N` is at the token level. Source: VESPO, arXiv 2602.10693, with
    (2, 3) for A >= 0 and (3, 2) for A < 0.
    """
    log_weight_N = row_sums(log_ratio_N.detach(), rows_N)[rows_N]
    is_neg_N = advantages_N < 0
    k_N = torch.full_like(log_weight_N, k_pos).masked_fill(is_neg_N, k_neg)
    lambda_N = torch.full_like(log_weight_N, lambda_pos).masked_fill(is_neg_N, lambda_neg)
    # In logs: the product of a long row may overflow, and phi of it is then 0.
    phi_N = (k_N * log_weight_N - lambda_N * log_weight_N.expm1()).exp()
    return _weighted(phi_N, logprobs_N, advantages_N)


def _weighted(weight_N: Tensor, logprobs_N: Tensor, advantages_N: Tensor) -> Terms:
    """`-sg(w) A pi / sg(pi)` for each token."""
    score_N = (logprobs_N - logprobs_N.detach()).exp()
    return Terms(
        loss_N=-weight_N.detach() * advantages_N * score_N,
        clipped_N=_no(weight_N),
        masked_N=_no(weight_N),
    )


def _marked(
    terms: Terms, *, clipped_N: Tensor | None = None, masked_N: Tensor | None = None
) -> Terms:
    return Terms(
        loss_N=terms.loss_N,
        clipped_N=terms.clipped_N if clipped_N is None else clipped_N,
        masked_N=terms.masked_N if masked_N is None else masked_N,
    )


def _beyond(ratio_N: Tensor, advantages_N: Tensor, *, low: float, high: float) -> Tensor:
    """Tokens past the bound to which their advantage pushes them."""
    return ((advantages_N > 0) & (ratio_N > high)) | ((advantages_N < 0) & (ratio_N < low))


def _outward(log_ratio_N: Tensor, advantages_N: Tensor) -> Tensor:
    """Tokens that their advantage pushes further from the sampler."""
    return _beyond(log_ratio_N, advantages_N, low=0.0, high=0.0)


def _no(values_N: Tensor) -> Tensor:
    return torch.zeros_like(values_N, dtype=torch.bool)
