"""The learner's part of a checkpoint: `hf/`, a model to use, and in `resume/` what training needs.

    hf/                    see learner/export.py
    resume/trainer.pt      where training was, and what the slices are of
    resume/slices/         weights and AdamW's moments in float32, a safetensors file of each rank
    adapter/               of an adapted model, whose slices are the adapter's alone: as peft reads it

Slices are `torch.distributed.checkpoint`'s, in its safetensors form, which is data alone; any number
of ranks reads those of any other.

The directory is the coordinator's: it adds its own files and writes the mark that makes the
checkpoint exist (`rollout/checkpoints.py`). Each part here is filled under a temporary name and
renamed, so that it is whole or absent.
"""

import logging
import pickle
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import PreTrainedModel

from learner.export import write_hf
from learner.lora import adapter_of, write_adapter
from learner.optimizer import Optimizer
from learner.ranks import Ranks
from learner.shard import whole_adapter
from rollout.weights import Adapter

log = logging.getLogger(__name__)

# Version of `resume/trainer.pt` and of the slices.
FORMAT = 2

_PARTIAL = ".learner.partial"
_STATE = "trainer.pt"
_SLICES = "slices"
_ADAPTER = "adapter"
# Names that a message lists before it only counts.
_NUM_NAMED = 4


class CheckpointError(Exception):
    """A checkpoint cannot be written here, or is missing or not for this run."""


@dataclass(slots=True, kw_only=True, frozen=True)
class ResumeState:
    """Where a trainer was, beside its weights and its optimizer."""

    step: int
    """The last step trained."""
    version: int
    """The last version published."""
    lr_factor: float = 1.0
    """What rollbacks made of the learning rate."""
    floor: int = 0
    """Versions below this were rolled back: what they sampled is not trained on."""


def write_learner_part(
    directory: Path,
    *,
    model: PreTrainedModel,
    optimizer: Optimizer,
    dtype: torch.dtype,
    tokenizer_source: Path,
    state: ResumeState,
    ranks: Ranks,
) -> None:
    """Write `hf/`, `resume/` and, of an adapted model, `adapter/` into `directory`, made if missing.

    Every rank has to call this, and all of them write: into a directory that each can reach. Parts
    left by a killed attempt are replaced. `hf/` gets the tokenizer's files found in
    `tokenizer_source`. Raises CheckpointError when the checkpoint is complete already.
    """
    if (directory / "DONE").exists():
        raise CheckpointError(f"{directory} is a complete checkpoint: it is never written again")
    partial = directory / _PARTIAL
    if ranks.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / _SLICES).mkdir(parents=True)
    write_hf(partial / "hf", model, dtype=dtype, tokenizer_source=tokenizer_source, ranks=ranks)
    adapter = adapter_of(model)
    if adapter is not None:
        matrices = whole_adapter(model, dtype)
        if ranks.is_first:
            write_adapter(partial / _ADAPTER, model, matrices)
    ranks.gather(None)  # nobody writes into a directory that is not there yet
    tensors = optimizer.tensors()
    with _alone(ranks):
        save(
            dict[str, Any](tensors),
            storage_writer=HuggingFaceStorageWriter(str(partial / _SLICES), save_distributed=True),
            no_dist=ranks.size == 1,
        )
    if ranks.is_first:
        saved = {
            "format": FORMAT,
            **asdict(state),
            "rng": torch.get_rng_state(),
            "dtype": str(dtype),
            "adapter": msgspec.to_builtins(adapter),
            "ranks": ranks.size,
            "steps": optimizer.steps(),
            "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
            "files": _sizes(partial / _SLICES),
        }
        torch.save(saved, partial / _STATE)
        publish_parts(directory)
    ranks.gather(None)  # the part of all is complete when that of any is


def publish_parts(directory: Path) -> None:
    """Rename what was filled in `directory` to its final names; other files are left alone."""
    partial, resume = directory / _PARTIAL, directory / "resume"
    resume.mkdir(exist_ok=True)
    # Not atomic together, nor need it be: nobody reads a directory without DONE.
    for source, target in (
        (partial / "hf", directory / "hf"),
        (partial / _ADAPTER, directory / _ADAPTER),
        (partial / _SLICES, resume / _SLICES),
    ):
        shutil.rmtree(target, ignore_errors=True)
        if source.exists() or source.name != _ADAPTER:
            source.rename(target)
    (partial / _STATE).replace(resume / _STATE)
    partial.rmdir()


def read_learner_part(
    directory: Path,
    *,
    optimizer: Optimizer,
    adapter: Adapter | None,
    dtype: torch.dtype,
    ranks: Ranks,
) -> ResumeState:
    """Put weights, moments and the random state back; every rank has to call this.

    `adapter` is that of the model whose weights the optimizer has. Raises CheckpointError, before
    anything is put back where the checkpoint is of another model.
    """
    path = directory / "resume" / _STATE
    try:
        # weights_only: a checkpoint is data, and must not run code when it is opened.
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot resume from {path}: {error}") from error
    if saved.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {saved.get('format')!r}; this release reads format {FORMAT}"
        )
    _check_dtype(path, saved["dtype"], str(dtype))
    _check_adapter(path, saved.get("adapter"), adapter)
    _check_files(path.parent / _SLICES, saved["files"])
    _check_model(path, saved["shapes"], optimizer)
    optimizer.load(saved["steps"], lambda tensors: _fill(tensors, path.parent / _SLICES, ranks))
    torch.set_rng_state(saved["rng"])
    state = ResumeState(**{name: saved[name] for name in ResumeState.__slots__})
    log.info(
        "restored %s: step %d, version %d, %d tensors, written by %d ranks, read by rank %d of %d from %s",
        directory,
        state.step,
        state.version,
        len(saved["shapes"]),
        saved["ranks"],
        ranks.rank,
        ranks.size,
        ", ".join([_STATE, *(f"{_SLICES}/{name}" for name in saved["files"])]),
    )
    return state


def _fill(tensors: dict[str, Tensor], slices: Path, ranks: Ranks) -> None:
    reader = HuggingFaceStorageReader(str(slices))
    try:
        with _alone(ranks):
            load(dict[str, Any](tensors), storage_reader=reader, no_dist=ranks.size == 1)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot resume from {slices}: {error}") from error
    except CheckpointException as error:
        raise CheckpointError(f"cannot resume from {slices}: {error}") from error


@contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """Let torch not warn that there is but one rank, where that is what is wanted."""
    with warnings.catch_warnings():
        if ranks.size == 1:
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sizes(slices: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(slices.iterdir())}


def _check_files(slices: Path, files: Mapping[str, int]) -> None:
    """Raise CheckpointError unless the slices of every rank are there, and nothing else."""
    try:
        found = _sizes(slices)
    except OSError as error:
        raise CheckpointError(f"cannot resume from {slices}: {error}") from error
    if found != files:
        raise CheckpointError(
            f"cannot resume from {slices}: it has {found or 'no files'} (bytes by name), and {files} "
            "was written"
        )


def _check_dtype(path: Path, saved: str, own: str) -> None:
    if saved != own:
        saved, own = (name.removeprefix("torch.") for name in (saved, own))
        raise CheckpointError(
            f"{path} was written with model.dtype={saved!r}, and this run has {own!r}: resume with the "
            "one it was written with"
        )


def _check_adapter(path: Path, saved: dict[str, Any] | None, own: Adapter | None) -> None:
    theirs = None if saved is None else Adapter(**saved)
    if theirs != own:
        raise CheckpointError(
            f"{path} was written with {_in_words(theirs)}, and this run trains {_in_words(own)}: resume "
            "with the learner.lora it was written with"
        )


def _in_words(adapter: Adapter | None) -> str:
    if adapter is None:
        return "all weights (learner.lora.rank=0)"
    return (
        f"adapters of learner.lora.rank={adapter.rank}, alpha={adapter.alpha} and targets="
        f"{adapter.target_modules}"
    )


def _check_model(path: Path, saved: Mapping[str, list[int]], optimizer: Optimizer) -> None:
    """Raise CheckpointError, naming what differs, for a checkpoint of another model."""
    own = {name: list(tensor.shape) for name, tensor in optimizer.tensors().items()}
    prefix = "weight."
    theirs = {name: shape for name, shape in saved.items() if name.startswith(prefix)}
    ours = {name: shape for name, shape in own.items() if name.startswith(prefix)}
    differs = [f"{name} is not in this model" for name in theirs if name not in ours]
    differs += [f"{name} is not in the checkpoint" for name in ours if name not in theirs]
    differs += [
        f"{name} has shape {theirs[name]} there and {shape} here"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if not differs:
        return
    named = "; ".join(text.removeprefix(prefix) for text in differs[:_NUM_NAMED])
    more = f"; and {len(differs) - _NUM_NAMED} more" if len(differs) > _NUM_NAMED else ""
    raise CheckpointError(f"{path} is a checkpoint of another model than model.path: {named}{more}")
