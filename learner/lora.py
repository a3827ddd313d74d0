"""Adapters (LoRA), trained in place of a model's weights: peft's layers, put into the model in place.

The model stays what transformers made it. Weights leave it under the names of the model without
adapters, W + alpha / rank * B @ A for each adapted W; B is 0 at the start, so that these are W itself.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import Linear as AdaptedLinear
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.lora import LoraSection
from rollout.weights import Adapter

# What peft calls the one adapter of a model, and its file.
_NAME = "default"
_FILE = "adapter_model.safetensors"

# Puts a tensor together where ranks have slices of it.
Whole = Callable[[Tensor], Tensor]


def adapt(model: PreTrainedModel, section: LoraSection, *, base: Path, seed: int) -> None:
    """Freeze a model on the CPU, and give it adapters to train, which change nothing yet.

    `base` is where it was loaded from. Raises ValueError for targets that it has not.
    """
    head = model.get_output_embeddings()
    linear = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    known = {name.rpartition(".")[2] for name, one in linear.items() if one is not head}
    if unknown := sorted(set(section.targets) - known):
        raise ValueError(
            f"lora.targets has {', '.join(unknown)}, and the linear layers of "
            f"{type(model).__name__} that can be adapted are {', '.join(sorted(known))}"
        )
    targets = section.targets or known
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=[*targets],
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.absolute()),
    )
    # Alike on all ranks, and whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_NAME)
    model.eval()


def adapter_of(model: nn.Module) -> Adapter | None:
    """What the adapters of a model are; None where all weights are trained."""
    config = _config(model)
    if config is None:
        return None
    names = {name.rpartition(".")[2] for name, _ in _layers(model)}
    return Adapter(rank=config.r, alpha=config.lora_alpha, target_modules=sorted(names))


def switched_off(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within it the model computes what it did before it was adapted."""
    return rescale_adapter_scale(model, 0.0)


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The matrices of all adapters, named as peft's files name them."""
    return {
        f"base_model.model.{name}.lora_{part}.weight": matrix
        for name, layer in _layers(model)
        for part, matrix in zip("AB", _matrices(layer), strict=True)
    }


def published_name(name: str) -> str | None:
    """What a tensor of an adapted model is called without adapters; None for a part of one."""
    if ".lora_A." in name or ".lora_B." in name:
        return None
    return name.replace(".base_layer.", ".")


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The adapted layers, by the published name of their weights."""
    return {f"{name}.weight": layer for name, layer in _layers(model)}


@torch.no_grad()
def merged(layer: AdaptedLinear, weight: Tensor, whole: Whole) -> Tensor:
    """The weight of a layer with its adapter in it, in the type of `weight`, its own one."""
    a, b = (whole(matrix).to(weight.dtype).float() for matrix in _matrices(layer))
    if not b.any():  # -0.0 + 0.0 would be another number
        return weight
    return torch.addmm(weight.float(), b, a, alpha=layer.scaling[_NAME]).to(weight.dtype)


def merge(model: PreTrainedModel) -> None:
    """Put the adapters into the weights, for good: the model is as one that never had any."""
    for name, layer in _layers(model):
        own = layer.get_base_layer()
        assert isinstance(own, nn.Linear)
        own.weight.data = merged(layer, own.weight.data, lambda matrix: matrix)
        model.set_submodule(name, own)
    del model.peft_config


def write_adapter(directory: Path, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write `adapter_tensors` of a model, put together, into `directory`, from which peft loads them."""
    config = copy.copy(_config(model))
    assert config is not None
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules or ())
    config.save_pretrained(str(directory))
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, directory / _FILE, metadata={"format": "pt"})


def _config(model: nn.Module) -> LoraConfig | None:
    configs = getattr(model, "peft_config", None)
    return configs[_NAME] if configs else None


def _layers(model: nn.Module) -> list[tuple[str, AdaptedLinear]]:
    return [(name, one) for name, one in model.named_modules() if isinstance(one, AdaptedLinear)]


def _matrices(layer: AdaptedLinear) -> tuple[Tensor, Tensor]:
    a, b = (layer.get_parameter(f"lora_{part}.{_NAME}.weight") for part in "AB")
    return a.detach(), b.detach()
