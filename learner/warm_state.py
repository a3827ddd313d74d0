"""What a warm start keeps beside its policy, so that one that was killed goes on: `<out>/sft/`.

recipe.json, demonstrations.jsonl    what is trained on what, written before the first step
tokenizer/                           a new policy's
checkpoints/step_N/                  as a run's: hf/, resume/, DONE, of an adapted model adapter/
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from configs.load import ConfigError
from configs.sft import MessagesRow, SftRecipe
from learner.checkpoint import ResumeState, write_learner_part
from learner.optimizer import Optimizer
from learner.ranks import Ranks
from rollout import checkpoints
from rollout.tokens import ChatTokens

# Version of `recipe.json`.
FORMAT = 1

FOLDER = "sft"
_RECIPE, _ROWS, _TOKENIZER = "recipe.json", "demonstrations.jsonl", "tokenizer"


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `recipe.json`."""

    format: int = FORMAT
    recipe: SftRecipe


@dataclass(slots=True, kw_only=True, frozen=True)
class WarmState:
    """The folder of one warm start."""

    folder: Path
    tokenizer: Path
    """A directory with the tokenizer's files."""
    keep: int
    """Checkpoints kept."""

    @classmethod
    def begin(
        cls, recipe: SftRecipe, rows: Sequence[MessagesRow], tokens: ChatTokens
    ) -> "WarmState":
        """Write what it takes to begin again; what an earlier warm start left here is removed."""
        folder = Path(recipe.out) / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (folder / _ROWS).open("wb") as file:
            for row in rows:
                file.write(msgspec.json.encode(row) + b"\n")
        tokens.tokenizer.save_pretrained(folder / _TOKENIZER)
        # Last, and whole or not at all: it says that there is something to go on with.
        partial = folder / f".{_RECIPE}"
        kept = msgspec.json.encode(_Kept(recipe=recipe))
        partial.write_bytes(msgspec.json.format(kept, indent=2) + b"\n")
        partial.replace(folder / _RECIPE)
        return cls.of(recipe)

    @classmethod
    def of(cls, recipe: SftRecipe) -> "WarmState":
        """The folder that is there."""
        folder = Path(recipe.out) / FOLDER
        return cls(folder=folder, tokenizer=folder / _TOKENIZER, keep=recipe.checkpoint.keep)

    @property
    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        return checkpoints.latest(self.folder)

    def finish(self) -> None:
        """Note that the policy is written."""
        (self.folder / checkpoints.DONE).touch()

    def save(self, step: int, model: PreTrainedModel, optimizer: Optimizer) -> Path:
        """Write a checkpoint of `step`; returns its directory."""
        directory = checkpoints.begin(self.folder, step)
        write_learner_part(
            directory,
            model=model,
            optimizer=optimizer,
            dtype=model.dtype,
            tokenizer_source=self.tokenizer,
            state=ResumeState(step=step, version=step),
            ranks=Ranks(),
        )
        checkpoints.mark_done(directory)
        checkpoints.prune(self.folder, self.keep)
        return directory


def is_stopped(out: Path) -> bool:
    """Whether `resume` can go on with what is in `out`."""
    folder = out / FOLDER
    return (folder / _RECIPE).is_file() and not (folder / checkpoints.DONE).exists()


def read(out: Path) -> tuple[SftRecipe, list[MessagesRow]]:
    """The recipe and the demonstrations of a warm start in `out`; raises ConfigError without one."""
    folder = out / FOLDER
    if not (folder / _RECIPE).is_file():
        raise ConfigError(
            f"--resume {out}: nothing to go on with there: only a warm start with checkpoint.every above "
            "0 can, once its demonstrations are made"
        )
    try:
        kept = msgspec.json.decode((folder / _RECIPE).read_bytes(), type=_Kept)
        rows = msgspec.json.Decoder(MessagesRow).decode_lines((folder / _ROWS).read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"--resume {out}: {folder} cannot be read: {error}") from error
    if (folder / checkpoints.DONE).exists():
        raise ConfigError(
            f"--resume {out}: it has its policy already: base={out} trains that one further"
        )
    # It may have been moved.
    return msgspec.structs.replace(kept.recipe, out=str(out)), rows
