"""What may be done to the layers of a model: compute them again for less memory, compile them."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only the input of each layer for the backward pass, which computes the layer again.

    For good. transformers' own switch acts in train mode alone, where dropout would act too. Raises
    ValueError for a model whose layers are not known.
    """
    for layer in _layers(model, "learner.activation_checkpointing"):
        # No state of random numbers to keep: in eval mode nothing is drawn.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_layers(model: PreTrainedModel) -> None:
    """Let `torch.compile` fuse what is around the attention of each layer; to be called first.

    Raises ValueError for a model whose layers are not known.
    """
    for layer in _layers(model, "learner.compile"):
        # Every micro-batch has another number of tokens.
        layer.forward = torch.compile(layer.forward, dynamic=True)


def _layers(model: PreTrainedModel, setting: str) -> list[GradientCheckpointingLayer]:
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"{setting}=true needs to know the layers of a model, and {type(model).__name__} does "
            "not tell them: set it to false"
        )
    return layers
