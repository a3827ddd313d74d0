"""Writes a model as a Hugging Face directory, file by file, from weights that may be spread over ranks."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from learner.publish import named_weights
from learner.ranks import Ranks
from learner.shard import whole_weights

# A file is closed before it would be larger, unless one tensor alone is: memory for this much is needed.
FILE_BYTES = 5 * 10**9

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


def write_hf(
    directory: Path,
    model: PreTrainedModel,
    *,
    dtype: torch.dtype,
    tokenizer_source: Path,
    ranks: Ranks,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write a directory that loads with transformers and vLLM; weights have type `dtype`.

    It gets the tokenizer's files found in `tokenizer_source`. Every rank has to call this; the first
    one writes.
    """
    if ranks.is_first:
        _write_about(directory, model, dtype, tokenizer_source)
    weights = whole_weights(model, dtype)
    if getattr(model, "_weight_conversions", None):
        # Files name and cut the weights of such an architecture otherwise than its modules do, which
        # transformers knows to turn back for all of them at once.
        tensors = {name: tensor.cpu() for name, tensor in weights}
        if ranks.is_first:
            model.save_pretrained(directory, state_dict=tensors, max_shard_size=file_bytes)
            _write_about(directory, model, dtype, tokenizer_source)
        return
    sizes = {name: tensor.numel() * _width(tensor, dtype) for name, tensor in _tensors(model)}
    files = _files(sizes, file_bytes)
    for number, names in enumerate(files, 1):
        kept = {}
        for name in names:
            found, tensor = next(weights)
            assert found == name
            if ranks.is_first:
                kept[name] = tensor.cpu().contiguous()
            del tensor
        if ranks.is_first:
            save_file(kept, directory / _name(number, len(files)), metadata={"format": "pt"})
    if ranks.is_first and len(files) > 1:
        _write_index(directory, files, sizes)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from named_weights(model).items()


def _width(tensor: Tensor, dtype: torch.dtype) -> int:
    return dtype.itemsize if isinstance(tensor, nn.Parameter) else tensor.dtype.itemsize


def _files(sizes: dict[str, int], file_bytes: int) -> list[list[str]]:
    """Names in their order, cut where a file is full."""
    files: list[list[str]] = [[]]
    room = file_bytes
    for name, size in sizes.items():
        if files[-1] and size > room:
            files.append([])
            room = file_bytes
        files[-1].append(name)
        room -= size
    return files


def _name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_index(directory: Path, files: list[list[str]], sizes: dict[str, int]) -> None:
    numbered = enumerate(files, 1)
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {
            name: _name(number, len(files)) for number, names in numbered for name in names
        },
    }
    text = json.dumps(index, indent=2, sort_keys=True)
    (directory / "model.safetensors.index.json").write_text(text)


def _write_about(
    directory: Path, model: PreTrainedModel, dtype: torch.dtype, tokenizer_source: Path
) -> None:
    """Everything but the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    for pattern in _TOKENIZER_FILES:
        for path in tokenizer_source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)
