"""What is watched of a step's tokens: how far they are from their sampler, what was clipped, by lag.

N: trained tokens of a micro-batch, flat. Everything is a sum, so that micro-batches add up to the
batch. The ratio watched is that of the token itself, whatever level the loss uses.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learner.correction import Terms


@dataclass(slots=True, kw_only=True, frozen=True)
class RatioStats:
    """Sums over tokens; `a + b` are the sums over both micro-batches."""

    num_tokens: float = 0.0
    num_pos: float = 0.0
    """Tokens with a positive advantage."""
    num_neg: float = 0.0
    num_clipped_pos: float = 0.0
    """Of those, the ones whose ratio the correction held at a bound."""
    num_clipped_neg: float = 0.0
    num_masked_pos: float = 0.0
    """And the ones that it left out."""
    num_masked_neg: float = 0.0
    sum_ratio: float = 0.0
    sum_ratio_squared: float = 0.0
    sum_k1: float = 0.0
    sum_k3: float = 0.0
    max_abs_log_ratio: float = 0.0

    def __add__(self, other: "RatioStats") -> "RatioStats":
        summed = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__slots__
            if name != "max_abs_log_ratio"
        }
        largest = max(self.max_abs_log_ratio, other.max_abs_log_ratio)
        return RatioStats(**summed, max_abs_log_ratio=largest)

    def metrics(self) -> dict[str, float]:
        """Means over tokens; fractions by sign are shares of the tokens of that sign.

        `kl/engine_mean` is k3, `mean(r - 1 - log r)`, and `kl/engine_k1_mean` is k1,
        `mean(-log r)`: estimates of KL(sampler || trainer) from the sampler's tokens
        (J. Schulman, "Approximating KL divergence", 2020). `kl/engine_max` is the largest
        `|log r|`. `loss/ess` is Kish's effective sample size over N,
        `(sum r)^2 / (N sum r^2)`, which predicts collapse under lag (VCPO, arXiv 2602.17616); 0 where
        ratios are too far from 1 to be squared.
        """
        num_tokens = max(self.num_tokens, 1.0)
        ess = 0.0 if self.num_tokens else 1.0
        if 0.0 < self.sum_ratio_squared < math.inf:
            # In this order: a square that is too large for a float is an error, and not infinite.
            ess = self.sum_ratio / num_tokens * (self.sum_ratio / self.sum_ratio_squared)
        num_pos, num_neg = max(self.num_pos, 1.0), max(self.num_neg, 1.0)
        return {
            "loss/clip_frac": (self.num_clipped_pos + self.num_clipped_neg) / num_tokens,
            "loss/clip_frac_pos": self.num_clipped_pos / num_pos,
            "loss/clip_frac_neg": self.num_clipped_neg / num_neg,
            "loss/mask_frac": (self.num_masked_pos + self.num_masked_neg) / num_tokens,
            "loss/mask_frac_pos": self.num_masked_pos / num_pos,
            "loss/mask_frac_neg": self.num_masked_neg / num_neg,
            "loss/ess": ess,
            "kl/engine_mean": self.sum_k3 / num_tokens,
            "kl/engine_k1_mean": self.sum_k1 / num_tokens,
            "kl/engine_max": self.max_abs_log_ratio,
        }


@torch.no_grad()
def ratio_stats(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, terms: Terms
) -> RatioStats:
    """Watch the ratios of tokens to their sampler, and what the correction did to them.

    Tokens without advantage have no gradient to take: what became of them is not counted.
    """
    log_ratio_N = (logprobs_N - old_logprobs_N).double()
    if not log_ratio_N.numel():
        return RatioStats()
    ratio_N = log_ratio_N.exp()
    is_pos_N, is_neg_N = advantages_N > 0, advantages_N < 0
    # One transfer from the device instead of one for each sum.
    sums = torch.stack(
        [
            is_pos_N.sum().double(),
            is_neg_N.sum().double(),
            (is_pos_N & terms.clipped_N).sum().double(),
            (is_neg_N & terms.clipped_N).sum().double(),
            (is_pos_N & terms.masked_N).sum().double(),
            (is_neg_N & terms.masked_N).sum().double(),
            ratio_N.sum(),
            ratio_N.square().sum(),
            -log_ratio_N.sum(),
            # expm1 keeps the digits that exp(x) - 1 - x loses for the small x of a healthy run.
            (log_ratio_N.expm1() - log_ratio_N).sum(),
            log_ratio_N.abs().max(),
        ]
    ).tolist()
    return RatioStats(
        num_tokens=float(log_ratio_N.numel()),
        num_pos=sums[0],
        num_neg=sums[1],
        num_clipped_pos=sums[2],
        num_clipped_neg=sums[3],
        num_masked_pos=sums[4],
        num_masked_neg=sums[5],
        sum_ratio=sums[6],
        sum_ratio_squared=sums[7],
        sum_k1=sums[8],
        sum_k3=sums[9],
        max_abs_log_ratio=sums[10],
    )


@dataclass(slots=True, kw_only=True, frozen=True)
class _OfLag:
    """Sums over the tokens of one lag."""

    num_tokens: float = 0.0
    num_held: float = 0.0
    """Tokens that were clipped or left out."""
    num_gaps: float = 0.0
    """Tokens whose gap counts."""
    gap: float = 0.0
    """Sum of |log pi - log mu| over those."""

    def __add__(self, other: "_OfLag") -> "_OfLag":
        return _OfLag(
            num_tokens=self.num_tokens + other.num_tokens,
            num_held=self.num_held + other.num_held,
            num_gaps=self.num_gaps + other.num_gaps,
            gap=self.gap + other.gap,
        )


@dataclass(slots=True, kw_only=True, frozen=True)
class LagStats:
    """The same by lag: what lag 0 shows is arithmetic, what higher ones add is age."""

    lags: Mapping[int, _OfLag] = field(default_factory=dict)

    def __add__(self, other: "LagStats") -> "LagStats":
        both = self.lags.keys() | other.lags.keys()
        nothing = _OfLag()
        return LagStats(
            lags={x: self.lags.get(x, nothing) + other.lags.get(x, nothing) for x in sorted(both)}
        )

    def metrics(self) -> dict[str, float]:
        """`kl/gap_lag<k>_mean`, `loss/held_frac_lag<k>` and `lag/tokens_<k>`, of lags that occurred."""
        values: dict[str, float] = {}
        for lag, of in self.lags.items():
            values[f"lag/tokens_{lag}"] = of.num_tokens
            values[f"loss/held_frac_lag{lag}"] = of.num_held / of.num_tokens
            if of.num_gaps:
                values[f"kl/gap_lag{lag}_mean"] = of.gap / of.num_gaps
        return values


@torch.no_grad()
def lag_stats(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    lags_N: Tensor,
    mixed_kv_N: Tensor,
    terms: Terms,
) -> LagStats:
    """Watch tokens by their lag.

    Tokens of lag 0 that were sampled on a cache of older weights have no gap: they differ by design.
    """
    if not lags_N.numel():
        return LagStats()
    has_gap_N = ~(mixed_kv_N & (lags_N == 0))
    gap_N = (logprobs_N - old_logprobs_N).abs().double().where(has_gap_N, 0.0)
    held_N = terms.clipped_N | terms.masked_N
    columns = [torch.ones_like(gap_N), held_N.double(), has_gap_N.double(), gap_N]
    table = torch.stack([torch.bincount(lags_N, weights=column) for column in columns]).tolist()
    return LagStats(
        lags={
            lag: _OfLag(num_tokens=num, num_held=held, num_gaps=num_gaps, gap=gap)
            for lag, (num, held, num_gaps, gap) in enumerate(zip(*table, strict=True))
            if num
        }
    )
