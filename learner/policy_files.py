"""A warm start's policy as files: the same recipe, rows and library versions give the same bytes."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from transformers import PreTrainedModel

from configs.sft import MessagesRow, SftRecipe
from rollout.tokens import ChatTokens

# Settings that recipes had none of once: at their defaults they are no part of a recipe's hash, so
# that policies made before are still known by it.
_LATER = (
    "micro_batch_tokens",
    "epochs",
    "held_out",
    "dtype",
    "device",
    "threads",
    "activation_checkpointing",
    "rollouts",
    "lora",
)


def save(
    model: PreTrainedModel, tokens: ChatTokens, out: Path, *, metadata: dict[str, str]
) -> None:
    """Write a Hugging Face directory; files appear when whole, config.json last.

    Of a policy that is written over, config.json goes first: until all is there, it is no model.
    The safetensors carry `metadata`, and the hashes of the files they belong with.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        made = Path(name)
        model.save_pretrained(made)
        tokens.tokenizer.save_pretrained(made)
        for file in made.glob("*.safetensors"):
            _set_metadata(file, {"format": "pt", **metadata, **_file_hashes(made)})
        (out / "config.json").unlink(missing_ok=True)
        for file in sorted(made.iterdir(), key=lambda file: file.name == "config.json"):
            shutil.copyfile(file, out / f".{file.name}")
            (out / f".{file.name}").replace(out / file.name)


def recipe_hash(recipe: SftRecipe) -> str:
    """SHA-256 (hex) of what decides the weights: all of the recipe but where it is written."""
    plain = msgspec.to_builtins(msgspec.structs.replace(recipe, out="", overwrite=False))
    del plain["checkpoint"]
    defaults = SftRecipe(out="")
    for name in _LATER:
        if getattr(recipe, name) == getattr(defaults, name):
            del plain[name]
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def rows_hash(rows: Sequence[MessagesRow]) -> str:
    """SHA-256 (hex) of the rows as JSONL."""
    return hashlib.sha256(msgspec.json.Encoder().encode_lines(rows)).hexdigest()


def _file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 (hex) of the files without which weights mean something else."""
    names = ("config.json", "tokenizer.json", "chat_template.jinja")
    files = [directory / name for name in names if (directory / name).exists()]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _set_metadata(file: Path, metadata: dict[str, str]) -> None:
    """Rewrite the header of a safetensors file: 8 bytes of length, JSON, then the tensors.

    The library writes metadata in random order, and the same weights should be the same file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = metadata
        text = json.dumps(header, sort_keys=True).encode()
        text += b" " * (-len(text) % 8)  # the format wants tensors aligned to 8 bytes
        partial = file.with_suffix(".partial")
        with partial.open("wb") as written:
            written.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(opened, written)
    partial.replace(file)
