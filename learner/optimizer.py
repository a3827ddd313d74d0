"""AdamW on float32 weights, whatever the type the model computes in.

A bfloat16 weight cannot take a step of a thousandth of itself: it has 8 bits. So a bfloat16 model
gets a float32 master of every weight; gradients are summed and applied there, and the model holds
the masters rounded. Its forward pass is then the one the engines compute. A float32 model is its
own master.

A gradient goes to its master as soon as the backward pass has it: those of all weights in bfloat16
never exist at once.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from configs.schema import LearnerSection

# What a checkpoint calls the weights, and AdamW the rest.
_MASTER = "weight"
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """`backward` of micro-batches adds up gradients, which `step` applies."""

    def __init__(self, model: nn.Module, section: LearnerSection) -> None:
        """The weights may be spread over ranks: each then does this with its slices."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._names = [name for name, _ in named]
        self._weights = [p for _, p in named]
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
        gradients = [p.grad for p in self._masters if p.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        if isinstance(total, DTensor):  # what this rank has of it
            total = total.full_tensor()
        nn.utils.clip_grads_with_norm_(self._masters, self._section.grad_clip, total)
        norm = total.item()
        return norm if math.isfinite(norm) else math.nan

    def step(self, lr: float) -> None:
        """Apply the gradients at rate `lr` and forget them."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        self._adamw.step()
        self._copy_to_model()
        self.zero_grad()

    def steps(self) -> dict[str, int]:
        """How often each weight was stepped, by name; without those that never were."""
        return {name: int(state["step"].item()) for name, state in self._states()}

    def tensors(self) -> dict[str, Tensor]:
        """What goes on, with `steps`, bit for bit: masters and moments by name, slices where spread."""
        pairs = zip(self._names, self._masters, strict=True)
        tensors = {f"{_MASTER}.{name}": master.detach() for name, master in pairs}
        for name, state in self._states():
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS}
        return tensors

    def load(self, steps: Mapping[str, int], fill: Callable[[dict[str, Tensor]], None]) -> None:
        """Take over weights and moments: `fill` gets the tensors of `steps` and sets them in place.

        Betas and weight decay stay those of the section: a resumed run may have changed them.
        """
        state = {
            index: {
                "step": torch.tensor(float(steps[self._names[i]])),
                **{moment: torch.zeros_like(self._masters[i]) for moment in _MOMENTS},
            }
            for index, i in enumerate(self._order())
            if self._names[i] in steps
        }
        groups = self._adamw.state_dict()["param_groups"]
        self._adamw.load_state_dict({"state": state, "param_groups": groups})
        fill(self.tensors())
        self._copy_to_model()
        self.zero_grad()

    def _states(self) -> list[tuple[str, dict[str, Tensor]]]:
        pairs = zip(self._names, self._masters, strict=True)
        return [(name, self._adamw.state[p]) for name, p in pairs if p in self._adamw.state]

    def _order(self) -> list[int]:
        """Which weights AdamW has, group by group."""
        places = {id(master): i for i, master in enumerate(self._masters)}
        return [places[id(p)] for group in self._adamw.param_groups for p in group["params"]]

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
