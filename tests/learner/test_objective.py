import dataclasses
import math
from typing import Any, get_args, get_type_hints

import pytest
import torch

from configs.loss import LossSection
from learner import correction
from learner.objective import Loss, Tokens, objective
from tests.learner.batches import loss_section

CORRECTIONS = get_args(get_type_hints(LossSection)["correction"])
# Whose level is not that of a token by default.
LEVELS = {"vespo": "sequence"}

OLD = torch.tensor([-1.0, -2.0, -3.0, -4.0])
ROWS = torch.tensor([0, 0, 1, 1])
ADVANTAGES = torch.tensor([1.0, 1.0, -2.0, -2.0])
WEIGHTS = torch.tensor([0.25, 0.25, 0.25, 0.25])


def section(name: str, **settings: Any) -> LossSection:
    return loss_section(correction=name, level=LEVELS.get(name, "token"), **settings)


def tokens(ratios: list[float], **more: Any) -> Tokens:
    known: dict[str, Any] = {
        "logprobs_N": (OLD + torch.tensor(ratios).log()).requires_grad_(),
        "entropy_N": torch.zeros(4),
        "old_logprobs_N": OLD,
        "advantages_N": ADVANTAGES,
        "weights_N": WEIGHTS,
        "rows_N": ROWS,
        "lags_N": torch.ones(4, dtype=torch.int64),
        "mixed_kv_N": torch.zeros(4, dtype=torch.bool),
    }
    return Tokens(**(known | more))


def gradient(of: Tokens, loss: Loss) -> list[float]:
    (grad,) = torch.autograd.grad(loss.total, of.logprobs_N)
    return grad.tolist()


@pytest.mark.parametrize("name", CORRECTIONS)
def test_on_policy_every_correction_is_the_weighted_policy_gradient(name: str) -> None:
    weights = torch.tensor([0.5, 0.25, 0.125, 0.0])
    given = tokens([1.0] * 4, weights_N=weights)
    loss = objective(section(name), given, m2_bound=0.04)
    assert gradient(given, loss) == pytest.approx([-0.5, -0.25, 0.25, 0.0], abs=1e-6)
    assert loss.total.item() == pytest.approx(-0.5)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        # Ratios 6, 1, 1 and 1/4; advantages 1, 1, -2 and -2; weights 1/4.
        ("none", {}, [-1, -1, 2, 2]),
        ("clip", {}, [0, -1, 2, 0]),
        ("clip", {"clip_low": 0.8, "clip_high": 6.0}, [-6, -1, 2, 0.5]),
        # The root of 6 is past 1.2, and that of 1/4 below 0.8: whole rows are clipped.
        ("clip", {"level": "sequence"}, [0, 0, 0, 0]),
        ("clip", {"level": "sequence", "clip_high": 2.0}, [-(6**0.5), -(6**0.5), 0, 0]),
        ("tis", {}, [-2, -1, 2, 0.5]),
        ("tis", {"level": "sequence", "tis_cap": 3.0}, [-3, -3, 0.5, 0.5]),
        ("tis", {"level": "geometric"}, [-2, -2, 1, 1]),
        ("icepop", {}, [0, -1, 2, 0]),
        ("icepop", {"level": "geometric"}, [-(6**0.5), -(6**0.5), 1, 1]),
        ("icepop", {"level": "sequence", "icepop_low": 0.1}, [0, 0, 0.5, 0.5]),
        # exp(-1) is 0.37: a ratio of 6 moves it far; exp(-4) is 0.018: hardly anything moves it.
        ("dppo", {}, [0, -1, 2, 0.5]),
        ("dppo", {"dppo_delta": 1.0, "dppo_cap": 4.0}, [0, -1, 2, 0.5]),
        ("cispo", {}, [-5, -1, 2, 0.5]),
        ("cispo", {"cispo_low": 0.5, "cispo_high": 0.5}, [-1.5, -1, 2, 1]),
        # At lag 1 the centre is the sampler.
        ("decoupled", {}, [0, -1, 2, 0]),
        ("m2po", {}, [0, -1, 2, 0]),
    ],
)
def test_settings_reach_the_correction(
    name: str, settings: dict[str, Any], expected: list[float]
) -> None:
    given = tokens([6.0, 1.0, 1.0, 0.25])
    chosen = loss_section(correction=name, **settings)
    loss = objective(chosen, given, m2_bound=0.04)
    assert gradient(given, loss) == pytest.approx([x / 4 for x in expected], rel=1e-5, abs=1e-6)


def test_vespo_has_its_own_settings_by_sign() -> None:
    given = tokens([2.0, 1.0, 1.0, 0.5])
    chosen = section(
        "vespo", vespo_k_pos=1.0, vespo_lambda_pos=0.0, vespo_k_neg=0.0, vespo_lambda_neg=1.0
    )
    # W is 2 and then half.
    low = 2 * math.exp(0.5)
    expected = [x / 4 for x in (-2, -2, low, low)]
    assert gradient(given, objective(chosen, given)) == pytest.approx(expected, rel=1e-5)


def test_a_recomputed_centre_is_used_where_it_is_given() -> None:
    given = tokens([1.5] * 4, proximal_logprobs_N=OLD + math.log(1.5))
    loss = objective(section("decoupled"), given)
    # Nothing is clipped at the centre, and the weight is its distance from the sampler.
    assert gradient(given, loss) == pytest.approx([-0.375, -0.375, 0.75, 0.75], rel=1e-5)


def test_the_interpolated_centre_is_nearer_the_older_a_token_is() -> None:
    given = tokens([1.3, 1.3, 0.75, 0.75], lags_N=torch.tensor([1, 2, 1, 2]))
    # At lag 1 they are past the bounds of the sampler, at lag 2 the root of each is within them.
    loss = objective(section("decoupled"), given)
    assert gradient(given, loss) == pytest.approx([0.0, -1.3 / 4, 0.0, 1.5 / 4], rel=1e-5)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_micro_batches_add_up(name: str) -> None:
    whole = tokens([6.0, 0.9, 1.3, 0.25])
    total = objective(section(name), whole, m2_bound=0.04)
    expected = gradient(whole, total)
    values, found = 0.0, []
    for row in (0, 1):
        part = tokens([6.0, 0.9, 1.3, 0.25])
        known = [field.name for field in dataclasses.fields(part)]
        chosen = {
            name: getattr(part, name)[row == ROWS]
            for name in known
            if getattr(part, name) is not None
        }
        chosen["rows_N"] = torch.zeros_like(chosen["rows_N"])
        chosen["logprobs_N"] = chosen["logprobs_N"].detach().requires_grad_()
        cut = Tokens(**chosen)
        loss = objective(section(name), cut, m2_bound=0.04)
        values += loss.total.item()
        found += gradient(cut, loss)
    assert values == pytest.approx(total.total.item(), rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_a_divergence_from_the_reference_is_added_with_its_coefficient() -> None:
    given = tokens([1.0] * 4, reference_logprobs_N=OLD - math.log(2.0))
    loss = objective(section("none", kl_coef=0.1), given)
    # k3 of ref / pi = 1/2 is log 2 - 1/2, and its gradient 1/2.
    assert loss.kl is not None
    assert loss.kl.item() == pytest.approx(math.log(2) - 0.5, rel=1e-5)
    assert loss.total.item() == pytest.approx(0.5 + 0.1 * (math.log(2) - 0.5), rel=1e-5)
    assert loss.policy.item() == pytest.approx(0.5)
    expected = [(a + 0.1 * 0.5) / 4 for a in (-1, -1, 2, 2)]
    assert gradient(given, loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_what_is_left_out_may_be_any_distance_from_the_reference(estimator: Any) -> None:
    # All but impossible to these weights, as what collapsed weights sampled may be to better ones.
    far = OLD + torch.tensor([0.0, 0.0, 0.0, 1000.0])
    weights = torch.tensor([0.25, 0.25, 0.25, 0.0])
    given = tokens([1.0] * 4, reference_logprobs_N=far, weights_N=weights)
    loss = objective(section("none", kl_coef=0.1, kl_estimator=estimator), given)
    assert gradient(given, loss) == pytest.approx([-0.25, -0.25, 0.5, 0.0])
    assert loss.kl is not None and loss.kl.item() == 0.0


def test_entropy_is_taken_off_with_its_coefficient() -> None:
    entropy = torch.tensor([1.0, 2.0, 3.0, 6.0], requires_grad=True)
    loss = objective(section("none", entropy_coef=0.5), tokens([1.0] * 4, entropy_N=entropy))
    assert loss.total.item() == pytest.approx(0.5 - 0.5 * 3.0)
    (grad,) = torch.autograd.grad(loss.total, entropy)
    assert grad.tolist() == [-0.125] * 4


def test_every_correction_of_the_config_is_known() -> None:
    for name in CORRECTIONS:
        assert callable(getattr(correction, name))
