"""How a token's log ratio speaks for its row: pure functions, chosen by name from `LEVELS`.

N: trained tokens of a micro-batch, flat. `log_ratio_N` is the log-prob of a token under the weights
being trained minus that under the weights that sampled it. `rows_N` (int64, not negative) says which
row each token belongs to; a row is never cut in two by micro-batches. Only trained tokens count.

Every level gives each token the gradient of its own log-prob and nobody else's, so that what drops a
token drops its gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Level = Callable[[Tensor, Tensor], Tensor]


def token(log_ratio_N: Tensor, rows_N: Tensor) -> Tensor:
    """`log r_t`: each token its own ratio. Source: PPO, arXiv 1707.06347, equation 6."""
    return log_ratio_N


def sequence(log_ratio_N: Tensor, rows_N: Tensor) -> Tensor:
    """`sum_t log r_t`: the log likelihood ratio of the whole row, which its length makes large.

    Unbiased, and of a variance that grows with the length: for stop-gradient weights with a cap.
    Source: the importance weight of a trajectory, Precup et al., 2000.
    """
    return _of_row(row_sums(log_ratio_N.detach(), rows_N)[rows_N], log_ratio_N)


def geometric(log_ratio_N: Tensor, rows_N: Tensor) -> Tensor:
    """`(1 / |y|) sum_t log r_t`: the log of the geometric mean of the row's ratios.

    Source: GSPO, arXiv 2507.18071, equation 7; its gradient is that of GSPO-token, equation 14,
    `sg[s] pi_t / sg[pi_t]`, which gives each token its own credit and equals equation 10 where a row
    has one advantage.
    """
    sums_R = row_sums(log_ratio_N.detach(), rows_N)
    lengths_R = row_sums(torch.ones_like(log_ratio_N), rows_N)
    return _of_row((sums_R / lengths_R.clamp(min=1.0))[rows_N], log_ratio_N)


# `clip` at the sequence level is GSPO and takes the geometric mean: see `learner/objective.py`.
LEVELS: dict[str, Level] = {"token": token, "sequence": sequence, "geometric": geometric}


def row_sums(values_N: Tensor, rows_N: Tensor) -> Tensor:
    """[R] the sum of each row's values; R is one above the highest row, and rows may be missing."""
    num_rows = int(rows_N.max()) + 1 if rows_N.numel() else 0
    return values_N.new_zeros(num_rows).index_add(0, rows_N, values_N)


def _of_row(value_N: Tensor, log_ratio_N: Tensor) -> Tensor:
    """The row's value with the token's own gradient."""
    return value_N + (log_ratio_N - log_ratio_N.detach())
