"""What tests of several ranks have each of them do, and what one alone does for comparison."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from configs.schema import LearnerSection
from learner.optimizer import Optimizer
from learner.publish import Publisher
from learner.ranks import Ranks
from learner.shard import whole, whole_weights
from learner.trainer import Trainer
from rollout.types import decode_batch

Result = dict[str, Any]

_kept: dict[str, Trainer] = {}


def make_trainer(ranks: Ranks, model: Path, directory: Path, dtype: str, section: dict) -> Trainer:
    publisher = None
    if ranks.is_first:
        log = directory / "version.json"
        publisher = Publisher(
            directory=str(directory), fallback=directory, run_id=f"of{ranks.size}", log=log
        )
    return Trainer(
        model_path=model,
        dtype=dtype,
        section=LearnerSection(**section),
        temperature=1.0,
        publisher=publisher,
        ranks=ranks,
    )


def train(
    ranks: Ranks,
    model: Path,
    directory: Path,
    batches: list[bytes],
    dtype: str = "float32",
    section: dict | None = None,
    restore: Path | None = None,
    save: Path | None = None,
) -> Result:
    """Train on the batches, in order; the gradients are those that AdamW was given."""
    trainer = make_trainer(ranks, model, directory, dtype, section or {})
    if restore is not None:
        trainer.restore(restore)
    state = state_of(trainer)
    gradients: list[list[Tensor]] = []

    def watch(adamw: torch.optim.Optimizer, *_: Any) -> None:
        given = [p.grad for group in adamw.param_groups for p in group["params"]]
        gradients.append([whole(one).clone() for one in given if one is not None])

    hook = register_optimizer_step_pre_hook(watch)
    try:
        reports = [trainer.train(decode_batch(batch)) for batch in batches]
    finally:
        hook.remove()
    if save is not None:
        trainer.save(save)
    _kept["last"] = trainer
    return {
        "gradients": gradients,
        "metrics": [one.metrics for one in reports],
        "manifests": [one.manifest for one in reports],
        "weights": weights(trainer),
        "at_start": state,
        "at_end": state_of(trainer),
        "place": (trainer.step, trainer.version),
        "num_parameters": trainer.num_parameters,
        "num_here": sum(local(p).numel() for p in trainer.model.parameters()),
    }


def local(tensor: Tensor) -> Tensor:
    return getattr(tensor, "to_local", lambda: tensor)()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    named = whole_weights(trainer.model, torch.float32)
    return {name: tensor.clone() for name, tensor in named}


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """All that is saved of weights and moments."""
    optimizer: Optimizer = trainer._optimizer
    return {name: whole(tensor).clone() for name, tensor in optimizer.tensors().items()}


def train_on(ranks: Ranks, batch: bytes) -> dict[str, Tensor]:
    """One more step of the trainer of `train`; returns its weights, also after a refusal."""
    _kept["last"].train(decode_batch(batch))
    return weights(_kept["last"])


def weights_now(ranks: Ranks) -> dict[str, Tensor]:
    return weights(_kept["last"])


def die(ranks: Ranks, rank: int, batch: bytes) -> dict[str, Tensor] | None:
    """`rank` is killed where the others go on to a step."""
    if ranks.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_on(ranks, batch)


def dawdle(ranks: Ranks, rank: int, batch: bytes) -> dict[str, Tensor] | None:
    """`rank` does something else where the others go on to a step."""
    return None if ranks.rank == rank else train_on(ranks, batch)
