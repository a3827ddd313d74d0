"""A model whose weights are spread over the ranks of the learner, by FSDP2.

Every rank keeps a slice of each weight, in float32 if it is trained; a layer is put together, in the
type the model computes in, while it is computed. Gradients are summed over ranks in float32: weights of tokens
are those of the whole batch, so that nothing is to be averaged.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from learner.head import TokenLogprobs
from learner.lora import adapted, adapter_tensors, merged
from learner.publish import named_weights
from learner.ranks import Ranks

Pass = Callable[[PreTrainedModel], TokenLogprobs]


class Sharded(nn.Module):
    """Runs passes through a sharded model: whatever is not in a layer is put together meanwhile."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Pass) -> tuple[Tensor, Tensor]:
        # A plain tuple: hooks for the backward pass find the tensors in it.
        tokens = run(self.model)
        return tokens.logprobs_N, tokens.entropy_N

    def score(self, run: Pass) -> TokenLogprobs:
        """What `run` makes of the whole model; every rank has to call this."""
        logprobs_N, entropy_N = self(run)
        return TokenLogprobs(logprobs_N=logprobs_N, entropy_N=entropy_N)


def shard(model: PreTrainedModel, ranks: Ranks) -> Sharded:
    """Spread the weights of a model on the CPU over the ranks, on the device they meet on.

    It then computes what it did before, if it is run through the result. Raises ValueError for a
    model whose layers are not known.
    """
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"learner.ranks={ranks.size} needs to know the layers of a model, and "
            f"{type(model).__name__} does not tell them: use one rank"
        )
    policy = MixedPrecisionPolicy(
        param_dtype=model.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    sharded = Sharded(model)
    for module in (*layers, sharded):
        # One layer at a time: float32 weights of the whole model never exist in one place.
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.float()
        # The outermost part too is put together anew for each pass: after one without a backward
        # pass it would keep weights that the next step makes old.
        fully_shard(module, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=True)
        each = cast(FSDPModule, module)
        each.set_gradient_divide_factor(1.0)
        each.set_force_sum_reduction_for_comms(True)
    assert ranks.mesh is not None
    for buffer in model.buffers():
        buffer.data = buffer.data.to(ranks.mesh.device_type)
    return sharded


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the slices of all ranks, each of which has to call this."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers, named as published, one put together after the other.

    Parameters have type `dtype`, and adapters are in them. Every rank has to iterate to the end.
    """
    layers = adapted(model)
    for name, tensor in named_weights(model).items():
        is_parameter = isinstance(tensor, nn.Parameter)
        weight = whole(tensor).to(dtype) if is_parameter else whole(tensor)
        yield name, merged(layers[name], weight, whole) if name in layers else weight


def whole_adapter(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The matrices of the adapters, put together, on the CPU. Every rank has to call this."""
    tensors = adapter_tensors(model)
    return {name: whole(tensor).to(dtype).cpu() for name, tensor in tensors.items()}
