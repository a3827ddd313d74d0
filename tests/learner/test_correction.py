import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learner import correction
from learner.correction import Terms, interpolated_logprobs, m2_bound
from learner.ratio import geometric

Apply = Callable[[Tensor, Tensor, Tensor, Tensor], Terms]

VESPO = {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0}
CLIP = {"clip_low": 0.2, "clip_high": 0.28}

# Every correction on (log-probs, those of the sampler, advantages, rows), all else as by default.
ALL: dict[str, Apply] = {
    "none": lambda new, old, a, rows: correction.none(new, a),
    "clip": lambda new, old, a, rows: correction.clip(new - old, a, **CLIP),
    "tis": lambda new, old, a, rows: correction.tis(new - old, new, a, cap=2.0),
    "icepop": lambda new, old, a, rows: correction.icepop(new - old, new, a, low=0.5, high=5.0),
    "dppo": lambda new, old, a, rows: correction.dppo(new, old, a, delta=0.2, cap=10.0),
    "cispo": lambda new, old, a, rows: correction.cispo(new - old, new, a, low=1.0, high=4.0),
    "decoupled": lambda new, old, a, rows: correction.decoupled(new, old, old, a, **CLIP, cap=5.0),
    "m2po": lambda new, old, a, rows: correction.m2po(new - old, new, a, bound=0.04),
    "vespo": lambda new, old, a, rows: correction.vespo(new - old, rows, new, a, **VESPO),
}

OLD = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0])


def logprobs(ratios: list[float], old: Tensor = OLD) -> Tensor:
    """Log-probs with these ratios to `old`, as a leaf."""
    return (old[: len(ratios)] + torch.tensor(ratios).log()).requires_grad_()


def gradient(new: Tensor, terms: Terms) -> list[float]:
    (grad,) = torch.autograd.grad(terms.loss_N.sum(), new)
    return grad.tolist()


def near(values: list[float]) -> object:
    return pytest.approx(values, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", sorted(ALL))
def test_on_the_samplers_own_weights_it_is_the_plain_policy_gradient(name: str) -> None:
    new = logprobs([1.0] * 6)
    advantages = torch.tensor([3.0, 1.0, 0.5, 0.0, -0.5, -2.0])
    terms = ALL[name](new, OLD, advantages, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert gradient(new, terms) == near([-3.0, -1.0, -0.5, 0.0, 0.5, 2.0])
    # And every loss has the value of the surrogate, so that runs can be compared.
    assert terms.loss_N.tolist() == near([-3.0, -1.0, -0.5, 0.0, 0.5, 2.0])
    assert not terms.clipped_N.any() and not terms.masked_N.any()


@pytest.mark.parametrize("name", sorted(ALL))
def test_rows_may_come_in_any_micro_batch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old = -3.0 * torch.rand(12, generator=generator)
    new = old + torch.randn(12, generator=generator)
    advantages = torch.randn(12, generator=generator)
    rows = torch.arange(12) // 3
    whole = ALL[name](new, old, advantages, rows)
    for row in range(4):
        part = ALL[name](*(values[rows == row] for values in (new, old, advantages, rows)))
        torch.testing.assert_close(part.loss_N, whole.loss_N[rows == row])
        assert part.masked_N.tolist() == whole.masked_N[rows == row].tolist()


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_token_left_out_has_neither_loss_nor_gradient_and_no_other_grows(name: str) -> None:
    new = logprobs([1.0, 1.0, 1.0])
    advantages = torch.tensor([1.0, 1.0, 1.0])
    rows = torch.tensor([0, 1, 2])
    before = gradient(new, ALL[name](new, OLD[:3], advantages, rows))
    far = logprobs([1.0, 1.0, 12.0], torch.tensor([-1.0, -2.0, -3.0]))
    after = gradient(far, ALL[name](far, OLD[:3], advantages, rows))
    assert after[:2] == near(before[:2])


def test_clip_takes_the_worse_of_the_ratio_and_its_bound() -> None:
    new = logprobs([1.5, 0.5, 0.5, 0.6, 1.5, 3.0])
    advantages = torch.tensor([3.0, 1.0, -1.0, -1.0, -1.0, 0.0])
    terms = correction.clip(new - OLD, advantages, **CLIP)
    # 3 min(1.5, 1.28), min(.5, .8), min(-.5, -.8), min(-.6, -.8), min(-1.5, -1.28), 0
    assert terms.loss_N.tolist() == near([-3.84, -0.5, 0.8, 0.8, 1.5, 0.0])
    assert gradient(new, terms) == near([0.0, -0.5, 0.0, 0.0, 1.5, 0.0])
    assert terms.clipped_N.tolist() == [True, False, True, True, False, False]
    assert not terms.masked_N.any()


def test_clip_of_the_geometric_mean_is_gspo() -> None:
    # Row 0: ratios 4 and 1, their mean is 2 and past the bound. Row 1: 1.21 and 1, their mean is 1.1.
    new = logprobs([4.0, 1.21, 1.0, 1.0])
    rows = torch.tensor([0, 1, 0, 1])
    advantages = torch.tensor([2.0, 1.0, 2.0, 1.0])
    terms = correction.clip(geometric(new - OLD[:4], rows), advantages, **CLIP)
    assert terms.loss_N.tolist() == near([-2.56, -1.1, -2.56, -1.1])
    # A row is clipped whole; where it is not, each token has the row's ratio for a weight.
    assert gradient(new, terms) == near([0.0, -1.1, 0.0, -1.1])
    assert terms.clipped_N.tolist() == [True, False, True, False]


def test_tis_caps_the_weight_and_keeps_the_gradient() -> None:
    new = logprobs([3.0, 0.1, 3.0, 2.0])
    advantages = torch.tensor([1.0, 1.0, -2.0, 1.0])
    terms = correction.tis(new - OLD[:4], new, advantages, cap=2.5)
    assert gradient(new, terms) == near([-2.5, -0.1, 5.0, -2.0])
    assert terms.clipped_N.tolist() == [True, False, True, False]


def test_icepop_leaves_out_what_is_far_on_either_side_whatever_the_advantage() -> None:
    new = logprobs([6.0, 4.0, 0.6, 0.4, 6.0, 0.4])
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    terms = correction.icepop(new - OLD, new, advantages, low=0.5, high=5.0)
    assert gradient(new, terms) == near([0.0, -4.0, -0.6, 0.0, 0.0, 0.0])
    assert terms.masked_N.tolist() == [True, False, False, True, True, True]
    assert not terms.clipped_N.any()


def test_dppo_masks_by_how_far_the_probability_moved_and_not_its_ratio() -> None:
    # From, to: +.3 up; 5-fold but only +.04; -.3 down; +.3 against A; -.3 against A; A = 0.
    old = torch.tensor([0.2, 0.01, 0.4, 0.2, 0.4, 0.2]).log()
    new = torch.tensor([0.5, 0.05, 0.1, 0.5, 0.1, 0.9]).log().requires_grad_()
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    terms = correction.dppo(new, old, advantages, delta=0.2, cap=10.0)
    assert terms.masked_N.tolist() == [True, False, True, False, False, False]
    assert gradient(new, terms) == near([0.0, -5.0, 0.0, 2.5, -0.25, 0.0])


def test_dppo_bounds_the_weight_of_what_its_sampler_thought_impossible() -> None:
    old = torch.tensor([1e-6]).log()
    new = torch.tensor([0.1]).log().requires_grad_()
    terms = correction.dppo(new, old, torch.tensor([1.0]), delta=0.2, cap=10.0)
    assert gradient(new, terms) == near([-10.0])
    assert terms.clipped_N.tolist() == [True]


def test_cispo_bounds_weights_on_both_sides_and_keeps_every_gradient() -> None:
    new = logprobs([7.0, 0.1, 1.5, 7.0])
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0])
    terms = correction.cispo(new - OLD[:4], new, advantages, low=0.6, high=4.0)
    assert gradient(new, terms) == near([-5.0, -0.4, -1.5, 5.0])
    assert terms.clipped_N.tolist() == [True, True, False, True]


def test_decoupled_clips_around_the_proximal_policy_and_weighs_by_its_distance() -> None:
    # prox / mu is 2, 2, 6 and 2; pi / prox is 1.1, 1.5, 1.1 and .5.
    old = OLD[:4]
    proximal = old + torch.tensor([2.0, 2.0, 6.0, 2.0]).log()
    new = (proximal + torch.tensor([1.1, 1.5, 1.1, 0.5]).log()).requires_grad_()
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0])
    terms = correction.decoupled(new, old, proximal, advantages, **CLIP, cap=5.0)
    assert terms.loss_N.tolist() == near([-2.2, -2.56, 0.0, -1.0])
    assert gradient(new, terms) == near([-2.2, 0.0, 0.0, -1.0])
    assert terms.clipped_N.tolist() == [False, True, False, False]
    assert terms.masked_N.tolist() == [False, False, True, False]


def test_decoupled_takes_no_gradient_through_the_proximal_policy() -> None:
    new = logprobs([1.1])
    # A proximal policy that depends on the weights: as a constant it leaves u's gradient alone.
    terms = correction.decoupled(new, OLD[:1], new - 0.05, torch.tensor([1.0]), **CLIP, cap=5.0)
    assert gradient(new, terms) == near([-1.1])


def test_interpolation_is_one_version_back() -> None:
    old = torch.tensor([-4.0, -4.0, -4.0, -4.0])
    new = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    proximal = interpolated_logprobs(new, old, torch.tensor([0, 1, 2, 3]))
    # Lag 0: these weights; 1: the sampler; 2: half way; 3: two thirds of the way.
    assert proximal.tolist() == near([-1.0, -4.0, -2.5, -2.0])
    assert not proximal.requires_grad


def test_decoupled_is_clip_at_lag_one_and_slower_to_clip_beyond() -> None:
    new = logprobs([1.44, 1.44])
    old, advantages = OLD[:2], torch.tensor([1.0, 1.0])
    proximal = interpolated_logprobs(new, old, torch.tensor([1, 2]))
    terms = correction.decoupled(new, old, proximal, advantages, **CLIP, cap=5.0)
    # At lag 2 u is the root of the ratio, 1.2, and the weight is the other root.
    assert terms.clipped_N.tolist() == [True, False]
    assert terms.loss_N.tolist() == near([-1.28, -1.44])


def test_m2_bound_lets_the_smallest_stay_while_their_mean_is_within_the_budget() -> None:
    # Squares of tokens that A pushes outward: .01, .04, .25, .36. Means: .01, .025, .1, .165.
    log_ratios = torch.tensor([0.5, -0.1, 0.2, -0.6, 9.0, -9.0, 9.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    bounds = [m2_bound(log_ratios, advantages, budget=b) for b in (0.2, 0.12, 0.04, 0.02, 0.001)]
    # Half way between the last that stays and the first that goes.
    assert bounds == pytest.approx([math.inf, 0.305, 0.145, 0.025, 0.005])
    assert m2_bound(log_ratios[4:], advantages[4:], budget=0.04) == math.inf


def test_m2po_leaves_out_outliers_that_the_advantage_pushes_outward() -> None:
    new = logprobs([2.0, 1.1, 0.5, 0.9, 0.5, 2.0])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    terms = correction.m2po(new - OLD, new, advantages, bound=0.04)
    assert terms.masked_N.tolist() == [True, False, True, False, False, False]
    assert gradient(new, terms) == near([0.0, -1.1, 0.0, 0.9, -0.5, 2.0])


def test_vespo_weighs_whole_rows_by_sign() -> None:
    # Row 0: 2 * 1 = 2 with A > 0; row 1: 4 * .5 = 2 with A < 0; row 2: .5 with A = 1.
    new = logprobs([2.0, 1.0, 4.0, 0.5, 0.5])
    rows = torch.tensor([0, 0, 1, 1, 2])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0])
    terms = correction.vespo(new - OLD[:5], rows, new, advantages, **VESPO)
    # 2^2 e^-3, 2^3 e^-2, (1/2)^2 e^(3/2)
    pos, neg, low = 4 * math.exp(-3), 8 * math.exp(-2), 0.25 * math.exp(1.5)
    assert gradient(new, terms) == near([-pos, -pos, neg, neg, -low])


def test_vespo_of_a_row_that_is_all_but_impossible_is_nothing() -> None:
    for far in (1e4, -1e4):
        new = (OLD[:2] + torch.tensor([far, 0.0])).requires_grad_()
        rows = torch.tensor([0, 0])
        terms = correction.vespo(new - OLD[:2], rows, new, torch.ones(2), **VESPO)
        assert gradient(new, terms) == [0.0, 0.0]


@pytest.mark.parametrize("name", ["icepop", "dppo", "decoupled", "m2po"])
def test_a_ratio_that_overflows_is_left_out_and_spoils_nothing(name: str) -> None:
    old = torch.tensor([-1e4, -1.0])
    new = torch.tensor([-0.1, -1.0], requires_grad=True)
    advantages, rows = torch.ones(2), torch.tensor([0, 1])
    terms = ALL[name](new, old, advantages, rows)
    if name == "decoupled":
        proximal = new.detach()
        terms = correction.decoupled(new, old, proximal, advantages, **CLIP, cap=5.0)
    assert terms.masked_N.tolist() == [True, False]
    assert gradient(new, terms) == near([0.0, -1.0])
