"""What makes a step need less memory for more time."""

from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only the input of each layer for the backward pass, which computes the layer again.

    For good. transformers' own switch acts in train mode alone, where dropout would act too. Raises
    ValueError for a model whose layers are not known.
    """
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"learner.activation_checkpointing: {type(model).__name__} has no layers that can be "
            "computed again: set it to false"
        )
    for layer in layers:
        # No state of random numbers to keep: in eval mode nothing is drawn.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
