"""New weights beside the old ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rollout.staging import Memory, stage
from rollout.weights import WeightsError
from tests.models import publish


def policy(seed: int) -> nn.ParameterDict:
    """Tensors of odd sizes and several number types, one of them empty."""
    torch.manual_seed(seed)
    tensors = {
        "a": torch.randn(7, 3),
        "b": torch.randn(5).bfloat16(),
        "c": torch.randn(3).double(),
        "d": torch.empty(0, 4),
        "e": torch.randn(()),
    }
    return nn.ParameterDict({name: nn.Parameter(one) for name, one in tensors.items()})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_nothing_changes_before_new_weights_are_installed(tmp_path: Path) -> None:
    model, newer = policy(1), policy(2)
    before = state(model)
    staged = stage(model, publish(tmp_path / "w", state(newer), 1), Memory())
    (tmp_path / "w").write_bytes(b"")  # they are copies by now
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    staged.install()
    torch.testing.assert_close(state(model), state(newer), rtol=0, atol=0)


def test_every_tensor_begins_where_kernels_are_fast_and_has_room_of_its_own(tmp_path: Path) -> None:
    model, newer = policy(1), policy(2)
    stage(model, publish(tmp_path / "w", state(newer), 1), Memory()).install()
    for parameter in model.parameters():
        assert parameter.numel() == 0 or parameter.data_ptr() % 64 == 0
    expected = state(newer)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            parameter.fill_(3)
        expected[name] = torch.full_like(expected[name], 3)
        torch.testing.assert_close(state(model), expected, rtol=0, atol=0)


def test_memory_is_used_again_and_never_that_of_the_weights_in_use(tmp_path: Path) -> None:
    model, memory = policy(0), Memory()
    places: list[int] = []
    for seed in range(1, 6):
        before = state(model)
        manifest = publish(tmp_path / "w", state(policy(seed)), seed)
        # Given up before it was installed, as when a request is cancelled: it changes nothing.
        stage(model, publish(tmp_path / "x", state(policy(99)), seed), memory)
        staged = stage(model, manifest, memory)
        torch.testing.assert_close(state(model), before, rtol=0, atol=0)
        staged.install()
        torch.testing.assert_close(state(model), state(policy(seed)), rtol=0, atol=0)
        places.append(model.get_parameter("a").data_ptr())
    assert len(set(places)) == 2 and places[0] == places[2] == places[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.zeros(3, 7)}, r"has a as \(3, 7\)"),
        ({"b": torch.zeros(5)}, "torch.float32, and the model as .*bfloat16"),
        ({"f": torch.zeros(1)}, "lacks: .'f'"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Tensor], message: str
) -> None:
    model = policy(1)
    manifest = publish(tmp_path / "w", {**state(policy(2)), **change}, 1)
    with pytest.raises(WeightsError, match=message):
        stage(model, manifest, Memory())
