"""The learner's part of a checkpoint: `hf/`, a model to use, and `resume/trainer.pt`.

The directory is the coordinator's: it adds its own files and writes the mark that makes the
checkpoint exist (`rollout/checkpoints.py`). Each part here is filled under a temporary name and
renamed, so that it is whole or absent.
"""

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

# Version of `resume/trainer.pt`.
FORMAT = 1

_PARTIAL = ".learner.partial"
_STATE = "trainer.pt"
# What a tokenizer may consist of, in any of the layouts that transformers reads.
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.model",
)


class CheckpointError(Exception):
    """A checkpoint cannot be written here, or is missing or not for this run."""


@dataclass(slots=True, kw_only=True, frozen=True)
class ResumeState:
    """What a trainer needs, beside the weights in `hf/`, to go on bit for bit."""

    step: int
    """The last step trained."""
    version: int
    """The last version published."""
    optimizer: dict[str, Any]
    """As `Optimizer.state` gives it."""
    lr_factor: float = 1.0
    """What rollbacks made of the learning rate."""
    floor: int = 0
    """Versions below this were rolled back: what they sampled is not trained on."""


def write_learner_part(
    directory: Path, *, model: PreTrainedModel, tokenizer_source: Path, state: ResumeState
) -> None:
    """Write `hf/` and `resume/trainer.pt` into `directory`, made if missing.

    Parts left by a killed attempt are replaced. `hf/` gets the tokenizer's files found in
    `tokenizer_source`. Raises CheckpointError when the checkpoint is complete already.
    """
    if (directory / "DONE").exists():
        raise CheckpointError(f"{directory} is a complete checkpoint: it is never written again")
    partial = directory / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_hf(partial / "hf", model, tokenizer_source)
    _write_resume(partial / _STATE, state)
    publish_parts(directory)


def publish_parts(directory: Path) -> None:
    """Rename what was filled in `directory` to its final names; other files are left alone."""
    partial = directory / _PARTIAL
    # Not atomic as a pair, nor need it be: nobody reads a directory without DONE.
    hf, resume = directory / "hf", directory / "resume"
    shutil.rmtree(hf, ignore_errors=True)
    (partial / "hf").rename(hf)
    resume.mkdir(exist_ok=True)
    (partial / _STATE).replace(resume / _STATE)
    partial.rmdir()


def read_resume(directory: Path) -> ResumeState:
    """Read `resume/` and restore the random state; raises CheckpointError."""
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
    torch.set_rng_state(saved["rng"])
    return ResumeState(
        step=saved["step"],
        version=saved["version"],
        optimizer=saved["optimizer"],
        # A checkpoint of a release without rollbacks has had none.
        lr_factor=saved.get("lr_factor", 1.0),
        floor=saved.get("floor", 0),
    )


def _write_hf(directory: Path, model: PreTrainedModel, tokenizer_source: Path) -> None:
    # One file: the size at which transformers would begin a second one is out of reach.
    model.save_pretrained(directory, max_shard_size="100TB")
    for pattern in _TOKENIZER_FILES:
        for path in tokenizer_source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)


def _write_resume(path: Path, state: ResumeState) -> None:
    torch.save(
        {
            "format": FORMAT,
            "step": state.step,
            "version": state.version,
            "optimizer": state.optimizer,
            "lr_factor": state.lr_factor,
            "floor": state.floor,
            "rng": torch.get_rng_state(),
        },
        path,
    )
