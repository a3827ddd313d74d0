"""AdamW on float32 weights, whatever the type the model computes in.

A bfloat16 weight cannot take a step of a thousandth of itself: it has 8 bits. So a bfloat16 model
gets a float32 master of every weight; gradients are summed and applied there, and the model holds
the masters rounded. Its forward pass is then the one the engines compute. A float32 model is its
own master.

A gradient goes to its master as soon as the backward pass has it: those of all weights in bfloat16
never exist at once.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import LearnerSection


class Optimizer:
    """`backward` of micro-batches adds up gradients, which `step` applies."""

    def __init__(self, model: nn.Module, section: LearnerSection) -> None:
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._masters = [
            p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for p in self._weights
        ]
        self._section = section
        # Decay pulls matrices towards 0; scales of norms and biases have no reason to be small.
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in self._masters if p.ndim > 1]},
                {"params": [p for p in self._masters if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=section.lr,
            betas=(section.beta1, section.beta2),
            weight_decay=section.weight_decay,
            # One pass over the memory instead of one for each operation.
            fused=True,
        )
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is not master:
                weight.register_post_accumulate_grad_hook(partial(_hand_over, master))

    def zero_grad(self) -> None:
        for parameter in (*self._weights, *self._masters):
            parameter.grad = None

    def clip(self) -> float:
        """Bound the gradient's norm; returns the norm before, which may be NaN or infinite."""
        norm = nn.utils.clip_grad_norm_(self._masters, self._section.grad_clip).item()
        return norm if math.isfinite(norm) else math.nan

    def step(self, lr: float) -> None:
        """Apply the gradients at rate `lr` and forget them."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._copy_to_model()
        self.zero_grad()

    def state(self) -> dict[str, Any]:
        """What `load` needs to continue bit for bit; loads with `torch.load(weights_only=True)`."""
        return {"adamw": self._adamw.state_dict(), "masters": self._own_masters()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over the moments of `state`; the model's weights must be loaded before.

        Betas and weight decay stay those of the section: a resumed run may have changed them.
        """
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({**state["adamw"], "param_groups": groups})
        masters = self._own_masters()
        if len(state["masters"]) != len(masters):
            raise ValueError(
                f"the checkpoint has {len(state['masters'])} float32 masters and this model needs "
                f"{len(masters)}: resume with the model.dtype it was written with"
            )
        with torch.no_grad():
            for master, saved in zip(masters, state["masters"], strict=True):
                master.copy_(saved)
        self._copy_to_model()
        self.zero_grad()

    def _own_masters(self) -> list[Tensor]:
        pairs = zip(self._weights, self._masters, strict=True)
        return [master.detach() for weight, master in pairs if weight is not master]

    @torch.no_grad()
    def _copy_to_model(self) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            if weight is not master:
                weight.copy_(master)


def _hand_over(master: nn.Parameter, weight: Tensor) -> None:
    """Add the gradient of `weight` to that of `master`, and free it."""
    assert weight.grad is not None
    if master.grad is None:
        master.grad = weight.grad.float()
    else:
        master.grad += weight.grad
    weight.grad = None


def warmup_lr(step: int, *, lr: float, warmup_steps: int) -> float:
    """Rate of 1-based `step`: rises linearly to `lr` at step `warmup_steps`, then stays."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr
