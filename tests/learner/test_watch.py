import dataclasses
import math

import pytest
import torch

from learner.correction import Terms, clip, icepop
from learner.watch import LagStats, RatioStats, lag_stats, ratio_stats

# Ratios above and below the bounds, for either sign of the advantage, and one without advantage.
RATIOS = torch.tensor([1.5, 0.5, 0.5, 0.6, 1.5, 3.0])
ADVANTAGES = torch.tensor([3.0, 1.0, -1.0, -1.0, -1.0, 0.0])
OLD = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])
NEW = OLD + RATIOS.log()


def clipped(part: slice = slice(None)) -> Terms:
    return clip((NEW - OLD)[part], ADVANTAGES[part], clip_low=0.2, clip_high=0.28)


def nothing_held(num_tokens: int) -> Terms:
    no = torch.zeros(num_tokens, dtype=torch.bool)
    return Terms(loss_N=torch.zeros(num_tokens), clipped_N=no, masked_N=no)


def test_fractions_are_by_the_sign_of_the_advantage() -> None:
    metrics = ratio_stats(NEW, OLD, ADVANTAGES, clipped()).metrics()
    assert metrics["loss/clip_frac"] == 3 / 6
    assert metrics["loss/clip_frac_pos"] == 1 / 2
    assert metrics["loss/clip_frac_neg"] == 2 / 3
    assert metrics["loss/mask_frac"] == 0.0
    # Ratios 3 (A = 0), .5, .5 and .6 are outside.
    masked = icepop(NEW - OLD, NEW, ADVANTAGES, low=0.7, high=2.0)
    metrics = ratio_stats(NEW, OLD, ADVANTAGES, masked).metrics()
    assert metrics["loss/clip_frac"] == 0.0
    assert metrics["loss/mask_frac"] == 3 / 6
    assert metrics["loss/mask_frac_pos"] == 1 / 2
    assert metrics["loss/mask_frac_neg"] == 2 / 3


def test_mismatch_is_measured_against_the_sampler() -> None:
    old, new = torch.zeros(2), torch.tensor([math.log(2.0), math.log(0.5)])
    metrics = ratio_stats(new, old, torch.ones(2), nothing_held(2)).metrics()
    # k3: (2 - 1 - log 2 + 1/2 - 1 + log 2) / 2; k1: the logs cancel; ESS: 2.5^2 / (2 * 4.25)
    assert metrics["kl/engine_mean"] == pytest.approx(0.25)
    assert metrics["kl/engine_k1_mean"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["kl/engine_max"] == pytest.approx(math.log(2.0))
    assert metrics["loss/ess"] == pytest.approx(6.25 / 8.5)


@pytest.mark.parametrize("log_ratio", [100.0, 400.0, 1e4])
def test_a_ratio_that_overflows_leaves_no_effective_sample(log_ratio: float) -> None:
    new = torch.tensor([0.0, log_ratio])
    metrics = ratio_stats(new, torch.zeros(2), torch.ones(2), nothing_held(2)).metrics()
    assert metrics["loss/ess"] == pytest.approx(0.5 if log_ratio == 100.0 else 0.0)
    assert metrics["kl/engine_max"] == log_ratio


def test_stats_of_two_micro_batches_add_up_to_those_of_one() -> None:
    whole = ratio_stats(NEW, OLD, ADVANTAGES, clipped())
    halves = [
        ratio_stats(NEW[part], OLD[part], ADVANTAGES[part], clipped(part))
        for part in (slice(0, 2), slice(2, 6))
    ]
    total = dataclasses.asdict(halves[0] + halves[1])
    assert total == pytest.approx(dataclasses.asdict(whole))


def test_tokens_are_watched_by_lag() -> None:
    lags = torch.tensor([0, 2, 2, 0, 2, 0])
    mixed = torch.tensor([True, False, True, False, False, False])
    metrics = lag_stats(NEW, OLD, lags, mixed, clipped()).metrics()
    assert metrics["lag/tokens_0"] == 3 and metrics["lag/tokens_2"] == 3
    assert "lag/tokens_1" not in metrics
    # Clipped are tokens 0, 2 and 3.
    assert metrics["loss/held_frac_lag0"] == pytest.approx(2 / 3)
    assert metrics["loss/held_frac_lag2"] == pytest.approx(1 / 3)
    # The first token of lag 0 was sampled on an older cache; at lag 2 that is no matter.
    gap0 = (abs(math.log(0.6)) + math.log(3.0)) / 2
    gap2 = (abs(math.log(0.5)) * 2 + math.log(1.5)) / 3
    assert metrics["kl/gap_lag0_mean"] == pytest.approx(gap0, rel=1e-5)
    assert metrics["kl/gap_lag2_mean"] == pytest.approx(gap2, rel=1e-5)


def test_a_lag_without_a_token_to_compare_has_no_gap() -> None:
    lags, mixed = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
    metrics = lag_stats(NEW, OLD, lags, mixed, clipped()).metrics()
    assert metrics == {"lag/tokens_0": 6.0, "loss/held_frac_lag0": 0.5}


def test_lags_of_two_micro_batches_add_up_to_those_of_one() -> None:
    lags, mixed = torch.tensor([0, 1, 1, 3, 3, 3]), torch.zeros(6, dtype=torch.bool)
    whole = lag_stats(NEW, OLD, lags, mixed, clipped())
    halves = [
        lag_stats(NEW[part], OLD[part], lags[part], mixed[part], clipped(part))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert (halves[0] + halves[1]).metrics() == pytest.approx(whole.metrics())


def test_stats_of_nothing_are_finite() -> None:
    assert all(math.isfinite(value) for value in RatioStats().metrics().values())
    nothing = torch.zeros(0)
    stats = ratio_stats(nothing, nothing, nothing, nothing_held(0))
    assert stats == RatioStats()
    no = torch.zeros(0, dtype=torch.bool)
    assert lag_stats(nothing, nothing, no.long(), no, nothing_held(0)) == LagStats()
