import dataclasses
import math

import pytest
import torch
from torch import Tensor

from learner.loss import RatioStats, clipped_loss, ratio_stats

CLIP = {"clip_low": 0.2, "clip_high": 0.28}
# Ratios above and below the bounds, for either sign of the advantage, and one without advantage.
RATIOS = [1.5, 0.5, 0.5, 0.6, 1.5, 3.0]
ADVANTAGES = torch.tensor([3.0, 1.0, -1.0, -1.0, -1.0, 0.0])
ALL = torch.ones(6, dtype=torch.bool)
OLD = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])


def logprobs(ratios: list[float]) -> Tensor:
    return (OLD + torch.tensor(ratios).log()).requires_grad_()


def test_loss_takes_the_worse_of_the_ratio_and_its_clip() -> None:
    # 3 min(1.5, 1.28) + min(.5, .8) + min(-.5, -.8) + min(-.6, -.8) + min(-1.5, -1.28) + 0
    #   = 3.84 + .5 - .8 - .8 - 1.5 = 1.24
    loss = clipped_loss(logprobs(RATIOS), OLD, ADVANTAGES, ALL, **CLIP)
    torch.testing.assert_close(loss, torch.tensor(-1.24))


def test_gradient_is_ratio_times_advantage_except_where_clipped() -> None:
    new = logprobs(RATIOS)
    clipped_loss(new, OLD, ADVANTAGES, ALL, **CLIP).backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([0.0, -0.5, 0.0, 0.0, 1.5, 0.0]))


def test_masked_tokens_add_nothing_even_when_they_are_not_numbers() -> None:
    new = torch.tensor([math.log(0.5), math.nan, math.inf], requires_grad=True)
    old = torch.tensor([0.0, -math.inf, math.nan])
    advantages, mask = torch.tensor([1.0, 1.0, math.nan]), torch.tensor([True, False, False])
    loss = clipped_loss(new, old, advantages, mask, **CLIP)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(-0.5))
    torch.testing.assert_close(new.grad, torch.tensor([-0.5, 0.0, 0.0]))
    assert ratio_stats(new, old, advantages, mask, **CLIP).num_tokens == 1


def test_clip_fractions_count_tokens_without_gradient_by_sign() -> None:
    metrics = ratio_stats(logprobs(RATIOS), OLD, ADVANTAGES, ALL, **CLIP).metrics()
    assert metrics["loss/clip_frac"] == 3 / 6
    assert metrics["loss/clip_frac_pos"] == 1 / 2
    assert metrics["loss/clip_frac_neg"] == 2 / 3


def test_mismatch_is_measured_against_the_sampler() -> None:
    old = torch.zeros(2)
    new = torch.tensor([math.log(2.0), math.log(0.5)])
    mask = torch.ones(2, dtype=torch.bool)
    metrics = ratio_stats(new, old, torch.ones(2), mask, **CLIP).metrics()
    # k3: (2 - 1 - log 2 + 1/2 - 1 + log 2) / 2; k1: the logs cancel; ESS: 2.5^2 / (2 * 4.25)
    assert metrics["kl/engine_mean"] == pytest.approx(0.25)
    assert metrics["kl/engine_k1_mean"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["kl/engine_max"] == pytest.approx(math.log(2.0))
    assert metrics["loss/ess"] == pytest.approx(6.25 / 8.5)


def test_stats_of_two_micro_batches_add_up_to_those_of_one() -> None:
    new = logprobs(RATIOS).detach()
    whole = ratio_stats(new, OLD, ADVANTAGES, ALL, **CLIP)
    halves = [
        ratio_stats(new[part], OLD[part], ADVANTAGES[part], ALL[part], **CLIP)
        for part in (slice(0, 2), slice(2, 6))
    ]
    total = dataclasses.asdict(halves[0] + halves[1])
    assert total == pytest.approx(dataclasses.asdict(whole))


def test_stats_of_nothing_are_finite() -> None:
    assert all(math.isfinite(value) for value in RatioStats().metrics().values())
