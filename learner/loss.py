"""The policy loss and what is watched beside it: pure functions of per-token log-probs.

T: tokens of one micro-batch, in any order. `ratio` is the probability of a token under the weights
being trained over that under the weights that sampled it. Everything is a sum over the masked
tokens, so that micro-batches add up to the batch; the caller divides by a count fixed before.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def clipped_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """PPO surrogate `-sum min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`: a scalar.

    The ratio is to the sampler's own log-probs, so that the clip bounds how far stale data may
    push. Sources: PPO, arXiv 1707.06347, equation 7; separate bounds and the token-level sum, DAPO,
    arXiv 2503.14476, sections 3.1 and 3.3. Tokens with `mask_T` False add nothing, whatever they
    hold.
    """
    ratio_T = _log_ratio(logprobs_T, old_logprobs_T, mask_T).exp()
    advantages_T = advantages_T.where(mask_T, 0.0)
    clipped_T = ratio_T.clamp(1.0 - clip_low, 1.0 + clip_high)
    return -torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T).sum()


@dataclass(slots=True, kw_only=True, frozen=True)
class RatioStats:
    """Sums over masked tokens; `a + b` are the sums over both micro-batches."""

    num_tokens: float = 0.0
    num_pos: float = 0.0
    """Tokens with a positive advantage."""
    num_neg: float = 0.0
    num_clipped_pos: float = 0.0
    """Of those, the ones whose gradient the clip removes."""
    num_clipped_neg: float = 0.0
    sum_ratio: float = 0.0
    sum_ratio_squared: float = 0.0
    sum_k1: float = 0.0
    sum_k3: float = 0.0
    max_abs_log_ratio: float = 0.0

    def __add__(self, other: "RatioStats") -> "RatioStats":
        return RatioStats(
            num_tokens=self.num_tokens + other.num_tokens,
            num_pos=self.num_pos + other.num_pos,
            num_neg=self.num_neg + other.num_neg,
            num_clipped_pos=self.num_clipped_pos + other.num_clipped_pos,
            num_clipped_neg=self.num_clipped_neg + other.num_clipped_neg,
            sum_ratio=self.sum_ratio + other.sum_ratio,
            sum_ratio_squared=self.sum_ratio_squared + other.sum_ratio_squared,
            sum_k1=self.sum_k1 + other.sum_k1,
            sum_k3=self.sum_k3 + other.sum_k3,
            max_abs_log_ratio=max(self.max_abs_log_ratio, other.max_abs_log_ratio),
        )

    def metrics(self) -> dict[str, float]:
        """Means over tokens; the clip fractions by sign are shares of the tokens of that sign.

        `kl/engine_mean` is k3, `mean(r - 1 - log r)`, and `kl/engine_k1_mean` is k1,
        `mean(-log r)`: estimates of KL(sampler || trainer) from the sampler's tokens
        (J. Schulman, "Approximating KL divergence", 2020). `kl/engine_max` is the largest
        `|log r|`. `loss/ess` is Kish's effective sample size over N,
        `(sum r)^2 / (N sum r^2)`, which predicts collapse under lag (VCPO, arXiv 2602.17616).
        """
        num_tokens = max(self.num_tokens, 1.0)
        ess = self.sum_ratio**2 / (num_tokens * self.sum_ratio_squared) if self.num_tokens else 1.0
        return {
            "loss/clip_frac": (self.num_clipped_pos + self.num_clipped_neg) / num_tokens,
            "loss/clip_frac_pos": self.num_clipped_pos / max(self.num_pos, 1.0),
            "loss/clip_frac_neg": self.num_clipped_neg / max(self.num_neg, 1.0),
            "loss/ess": ess,
            "kl/engine_mean": self.sum_k3 / num_tokens,
            "kl/engine_k1_mean": self.sum_k1 / num_tokens,
            "kl/engine_max": self.max_abs_log_ratio,
        }


@torch.no_grad()
def ratio_stats(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    mask_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> RatioStats:
    """Watch the ratios that `clipped_loss` sees, from the same arguments."""
    log_ratio_T = _log_ratio(logprobs_T, old_logprobs_T, mask_T)[mask_T].double()
    if not log_ratio_T.numel():
        return RatioStats()
    advantages_T = advantages_T[mask_T]
    ratio_T = log_ratio_T.exp()
    is_pos_T, is_neg_T = advantages_T > 0, advantages_T < 0
    # One transfer from the device instead of one for each sum.
    sums = torch.stack(
        [
            is_pos_T.sum().double(),
            is_neg_T.sum().double(),
            (is_pos_T & (ratio_T > 1.0 + clip_high)).sum().double(),
            (is_neg_T & (ratio_T < 1.0 - clip_low)).sum().double(),
            ratio_T.sum(),
            ratio_T.square().sum(),
            -log_ratio_T.sum(),
            # expm1 keeps the digits that exp(x) - 1 - x loses for the small x of a healthy run.
            (log_ratio_T.expm1() - log_ratio_T).sum(),
            log_ratio_T.abs().max(),
        ]
    ).tolist()
    return RatioStats(
        num_tokens=float(log_ratio_T.numel()),
        num_pos=sums[0],
        num_neg=sums[1],
        num_clipped_pos=sums[2],
        num_clipped_neg=sums[3],
        sum_ratio=sums[4],
        sum_ratio_squared=sums[5],
        sum_k1=sums[6],
        sum_k3=sums[7],
        max_abs_log_ratio=sums[8],
    )


def _log_ratio(logprobs_T: Tensor, old_logprobs_T: Tensor, mask_T: Tensor) -> Tensor:
    return (logprobs_T - old_logprobs_T).where(mask_T, 0.0)
