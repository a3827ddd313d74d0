"""What a loss has beside its policy term: the weight of a token, and the terms that hold it back.

Pure functions, chosen by name. N: trained tokens of a micro-batch, flat. R: rollouts of the batch that
have a trained token. Weights are fixed for the whole batch, before anything is clipped or left out, so
that the sums of micro-batches, and of ranks, add up to the loss of the batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Aggregation = Callable[[Sequence[int], int], list[float]]


def per_token(num_tokens_R: Sequence[int], constant_tokens: int) -> list[float]:
    """`1 / sum_i |y_i|`: every trained token of the batch weighs the same.

    Source: DAPO, arXiv 2503.14476, section 3.3.
    """
    return [1.0 / sum(num_tokens_R)] * len(num_tokens_R)


def per_sequence(num_tokens_R: Sequence[int], constant_tokens: int) -> list[float]:
    """`1 / (R |y_i|)`: every rollout weighs the same, so a token of a long one weighs less.

    Source: GRPO, DeepSeekMath, arXiv 2402.03300, equation 3.
    """
    return [1.0 / (len(num_tokens_R) * num_tokens) for num_tokens in num_tokens_R]


def per_constant(num_tokens_R: Sequence[int], constant_tokens: int) -> list[float]:
    """`1 / (R constant_tokens)`: the weight depends on no length that the policy can choose.

    Source: Dr. GRPO, arXiv 2503.20783, section 3.2, with the generation budget as the constant.
    """
    return [1.0 / (len(num_tokens_R) * constant_tokens)] * len(num_tokens_R)


AGGREGATIONS: dict[str, Aggregation] = {
    "token": per_token,
    "sequence": per_sequence,
    "constant": per_constant,
}

Divergence = Callable[[Tensor, Tensor], Tensor]


def kl_k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """`log pi - log ref`, with the gradient of `k2`.

    Its own gradient has expectation 0, so that as a loss it would hold nothing back; as a reward it
    acts as here. Source: J. Schulman, "Approximating KL divergence", 2020; on gradients, Y. Tang and
    R. Munos, arXiv 2506.09477.
    """
    gap_N = logprobs_N.detach() - reference_N
    return gap_N * (1.0 + logprobs_N - logprobs_N.detach())


def kl_k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """`(log pi - log ref)^2 / 2`: biased, never negative, its gradient is that of KL(pi || ref).

    Source: as `kl_k1`.
    """
    return (logprobs_N - reference_N).square() / 2.0


def kl_k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """`q - 1 - log q`, `q` = ref / pi: unbiased and never negative; its gradient is `(1 - q)`.

    Source: as `kl_k1`; the penalty of GRPO, DeepSeekMath, arXiv 2402.03300, equation 4.
    """
    log_q_N = reference_N - logprobs_N
    return log_q_N.expm1() - log_q_N


DIVERGENCES: dict[str, Divergence] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def overlong_penalty(num_tokens: int, *, start: int, end: int) -> float:
    """What a rollout loses of its reward for its length: 0 up to `start`, 1 from `end`, a line between.

    Source: soft overlong punishment, DAPO, arXiv 2503.14476, equation 13.
    """
    return min(1.0, max(0.0, (num_tokens - start) / (end - start)))


def weighted_sum(values_N: Tensor, weights_N: Tensor) -> Tensor:
    """`sum_i w_i v_i`, where a weight of 0 leaves a value out whatever it is."""
    return torch.where(weights_N != 0, weights_N * values_N, 0.0).sum()
