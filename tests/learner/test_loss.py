import math

import pytest
import torch

from learner.loss import AGGREGATIONS, DIVERGENCES, overlong_penalty, weighted_sum


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", [1 / 8, 1 / 8, 1 / 8]),
        ("sequence", [1 / 3, 1 / 15, 1 / 6]),
        ("constant", [1 / 30, 1 / 30, 1 / 30]),
    ],
)
def test_weight_of_a_token_of_each_rollout(aggregation: str, expected: list[float]) -> None:
    assert AGGREGATIONS[aggregation]([1, 5, 2], 10) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_weights_of_all_tokens_add_up_to_one(aggregation: str) -> None:
    num_tokens = [1, 5, 2, 40]
    weights = AGGREGATIONS[aggregation](num_tokens, 0)
    assert sum(n * weight for n, weight in zip(num_tokens, weights, strict=True)) == (
        pytest.approx(1.0)
    )


def test_estimates_of_the_divergence_from_a_reference() -> None:
    # pi / ref = 2 and 1/4
    logprobs = torch.tensor([-1.0, -2.0])
    reference = logprobs - torch.tensor([2.0, 0.25]).log()
    two = math.log(2)
    expected = {
        "k1": [two, -2 * two],
        "k2": [two**2 / 2, 2 * two**2],
        # 1/2 - 1 + log 2 and 4 - 1 - log 4
        "k3": [-0.5 + two, 3.0 - 2 * two],
    }
    for name, values in expected.items():
        assert DIVERGENCES[name](logprobs, reference).tolist() == pytest.approx(values, rel=1e-5)


def test_gradients_of_the_estimates_pull_towards_the_reference() -> None:
    two = math.log(2)
    # k1 and k2: the log ratio; k3: 1 - ref / pi
    expected = {"k1": [two, -2 * two], "k2": [two, -2 * two], "k3": [0.5, -3.0]}
    for name, values in expected.items():
        logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
        reference = logprobs.detach() - torch.tensor([2.0, 0.25]).log()
        (grad,) = torch.autograd.grad(DIVERGENCES[name](logprobs, reference).sum(), logprobs)
        assert grad.tolist() == pytest.approx(values, rel=1e-5)


def test_overlong_rollouts_lose_reward_along_a_line() -> None:
    lost = [overlong_penalty(n, start=100, end=150) for n in (0, 100, 110, 125, 150, 400)]
    assert lost == pytest.approx([0.0, 0.0, 0.2, 0.5, 1.0, 1.0])


def test_a_weight_of_zero_leaves_out_what_is_no_number() -> None:
    values = torch.tensor([2.0, math.nan, math.inf, 3.0], requires_grad=True)
    total = weighted_sum(values, torch.tensor([0.5, 0.0, 0.0, 1.0]))
    (grad,) = torch.autograd.grad(total, values)
    assert total.item() == 4.0
    assert grad.tolist() == [0.5, 0.0, 0.0, 1.0]
