"""What is summed up over an update's trained tokens, of which micro-batches and ranks each have some."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from learner.objective import Loss, Tokens
from learner.watch import LagStats, RatioStats, lag_stats, ratio_stats


@dataclass(slots=True, kw_only=True)
class Sums:
    """Over the trained tokens of an update."""

    loss: float = 0.0
    """This and the next two are weighted sums, and so those of the batch."""
    policy: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    num_tokens: int = 0
    grad_norm: float = 0.0
    ratios: RatioStats = field(default_factory=RatioStats)
    lags: LagStats = field(default_factory=LagStats)

    def add(self, loss: Loss, tokens: Tokens) -> None:
        self.loss += loss.total.item()
        self.policy += loss.policy.item()
        self.kl += loss.kl.item() if loss.kl is not None else 0.0
        self.entropy += tokens.entropy_N.detach().double().sum().item()
        self.num_tokens += tokens.logprobs_N.numel()
        against = tokens.logprobs_N, tokens.old_logprobs_N
        self.ratios += ratio_stats(*against, tokens.advantages_N, loss.terms)
        self.lags += lag_stats(*against, tokens.lags_N, tokens.mixed_kv_N, loss.terms)

    def __iadd__(self, other: "Sums") -> "Sums":
        """Add what another rank has."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def sum_of(parts: Sequence[Sums]) -> Sums:
    """Of all ranks."""
    total = Sums()
    for part in parts:
        total += part
    return total
