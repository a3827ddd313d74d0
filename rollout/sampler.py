"""How the embedded engine draws tokens: temperature and inverse CDF, one uniform number per token.

Each request has a random stream of its own, so that what it samples does not depend on what else is
running. The log-prob returned is that of the distribution that was sampled from.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Uniform numbers drawn at once for a request.
_CHUNK = 64

# The largest float32 below 1: a uniform number rounded up to 1 would fall off the end of the CDF.
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


class Stream:
    """Uniform numbers in [0, 1) of one request; the i-th depends only on the seed and i."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._chunk: list[float] = []

    def take(self) -> float:
        if not self._chunk:
            self._chunk = self._generator.random(_CHUNK)[::-1].tolist()
        return self._chunk.pop()


@dataclass(slots=True, kw_only=True, frozen=True)
class Draw:
    """One token for each of R rows."""

    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32]


def draw(
    logits_RV: Tensor, temperatures_R: npt.NDArray[np.float32], uniforms_R: npt.NDArray[np.float32]
) -> Draw:
    """Draw a token per row from softmax(logits / temperature); temperature 0 takes the likeliest.

    The log-prob of a greedy token is that at temperature 1. R: rows, V: vocabulary.
    """
    is_greedy = temperatures_R == 0
    divisors = torch.from_numpy(np.where(is_greedy, np.float32(1), temperatures_R))
    logprobs_RV = torch.log_softmax(logits_RV.float() / divisors[:, None], dim=-1)
    cdf_RV = logprobs_RV.exp().cumsum(dim=-1)
    # Scaled by the row's own total, so that rounding of the sum cannot matter.
    targets = torch.from_numpy(np.minimum(uniforms_R, _BELOW_ONE))[:, None] * cdf_RV[:, -1:]
    tokens = torch.searchsorted(cdf_RV, targets, right=True)
    if is_greedy.any():
        likeliest = logprobs_RV.argmax(dim=-1, keepdim=True)
        tokens = torch.where(torch.from_numpy(is_greedy)[:, None], likeliest, tokens)
    # A row of NaN points past its end; its log-prob is then NaN and the caller's to judge.
    tokens = tokens.clamp_(max=logits_RV.shape[-1] - 1)
    logprobs = logprobs_RV.gather(1, tokens)
    return Draw(tokens=tokens[:, 0].numpy(), logprobs=logprobs[:, 0].numpy())
