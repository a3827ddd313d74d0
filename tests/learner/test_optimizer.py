import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from configs.schema import LearnerSection
from learner.optimizer import Optimizer, warmup_lr


def linear(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(2, 2).to(dtype)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(1.0)
    return layer


def copy(kept: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    assert into.keys() == kept.keys()
    for name, tensor in into.items():
        tensor.copy_(kept[name])


def test_rate_rises_to_its_peak_over_the_warm_up() -> None:
    rates = [warmup_lr(step, lr=1.0, warmup_steps=4) for step in range(1, 7)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_rate_is_constant_without_a_warm_up() -> None:
    assert warmup_lr(1, lr=0.5, warmup_steps=0) == 0.5


def test_bfloat16_weights_take_small_steps_in_the_end() -> None:
    layer = linear(torch.bfloat16)
    optimizer = Optimizer(layer, LearnerSection())
    # The neighbours of 1 in bfloat16 are 1/256 below and 1/128 above: one step is lost on it.
    for step in range(40):
        layer.weight.sum().backward()

        optimizer.step(2e-4)
        if step == 0:
            assert layer.weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert layer.weight.dtype == torch.bfloat16
    assert layer.weight.max() < 1.0


def test_bfloat16_gradients_add_up_in_float32() -> None:
    layer = linear(torch.bfloat16)
    optimizer = Optimizer(layer, LearnerSection(grad_clip=1e6))
    # 256 + 1 is 256 in bfloat16.
    for scale in (256.0, 1.0):
        (layer.weight[0, 0] * scale).backward()

    assert optimizer.clip() == 257.0


def test_float32_weights_are_their_own_masters() -> None:
    layer = linear(torch.float32)
    optimizer = Optimizer(layer, LearnerSection())
    assert optimizer.tensors()["weight.weight"].data_ptr() == layer.weight.data_ptr()
    layer.weight.sum().backward()

    optimizer.step(0.1)
    # Adam's first step has the size of the rate.
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), 0.9))


def test_weight_decay_leaves_biases_alone() -> None:
    layer = linear(torch.float32)
    optimizer = Optimizer(layer, LearnerSection(weight_decay=0.5))
    (0.0 * (layer.weight.sum() + layer.bias.sum())).backward()

    optimizer.step(0.1)
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), 0.95))
    assert layer.bias.tolist() == [1.0, 1.0]


def test_gradient_is_clipped_and_its_norm_reported() -> None:
    layer = linear(torch.float32)
    optimizer = Optimizer(layer, LearnerSection(grad_clip=1.0))
    (3.0 * layer.weight[0, 0] + 4.0 * layer.bias[0]).backward()

    assert optimizer.clip() == 5.0
    assert layer.weight.grad is not None
    assert layer.weight.grad[0, 0].item() == pytest.approx(0.6, abs=1e-4)


def test_an_infinite_gradient_is_reported_as_not_finite() -> None:
    layer = linear(torch.float32)
    optimizer = Optimizer(layer, LearnerSection())
    (math.inf * layer.weight[0, 0]).backward()
    assert not math.isfinite(optimizer.clip())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_continues_bit_for_bit(dtype: torch.dtype) -> None:
    layer, other = linear(dtype), linear(dtype)
    saved, loaded = Optimizer(layer, LearnerSection()), Optimizer(other, LearnerSection())
    for step in range(5):
        (layer.weight * torch.arange(4.0).view(2, 2)).sum().backward()  # none for the bias
        saved.step(1e-3)
        if step == 2:
            kept = {name: tensor.clone() for name, tensor in saved.tensors().items()}
            loaded.load(saved.steps(), partial(copy, kept))
        elif step > 2:
            (other.weight * torch.arange(4.0).view(2, 2)).sum().backward()
            loaded.step(1e-3)
    assert saved.steps() == loaded.steps() == {"weight": 5}
    assert torch.equal(layer.weight, other.weight)
    torch.testing.assert_close(loaded.tensors(), saved.tensors(), rtol=0, atol=0)


def test_loading_what_never_stepped_forgets_the_moments() -> None:
    layer = linear(torch.float32)
    fresh = {
        name: one.clone() for name, one in Optimizer(layer, LearnerSection()).tensors().items()
    }
    optimizer = Optimizer(layer, LearnerSection())
    layer.weight.sum().backward()
    optimizer.step(0.1)
    optimizer.load({}, partial(copy, fresh))
    torch.testing.assert_close(optimizer.tensors(), fresh, rtol=0, atol=0)
    assert optimizer.steps() == {}


def test_a_resumed_run_may_change_betas_and_weight_decay() -> None:
    layer = linear(torch.float32)
    saved = Optimizer(layer, LearnerSection())
    layer.weight.sum().backward()
    saved.step(0.1)
    changed = Optimizer(layer, LearnerSection(beta1=0.0, weight_decay=0.5))
    kept = {name: tensor.clone() for name, tensor in saved.tensors().items()}
    changed.load(saved.steps(), partial(copy, kept))
    # Nothing is left of the old gradient without a memory of it: only the decay moves the weights.
    (0.0 * (layer.weight.sum() + layer.bias.sum())).backward()
    changed.step(0.1)
    torch.testing.assert_close(layer.weight.detach(), torch.full((2, 2), 0.9 * 0.95))
    assert layer.bias.tolist() == [1.0, 1.0]
