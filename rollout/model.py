"""How a policy is loaded: one function for the engine and the learner, so that they compute alike.

The model code is the Hugging Face model itself. The caller chooses train or eval mode.
"""

from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """The checkpoint cannot be used; the message names the path and the cure."""


def load_model(path: str | Path, dtype: str) -> PreTrainedModel:
    """The causal language model in directory `path`, on the CPU, in eval mode.

    Raises ModelError when the directory, the number type or the weights are wrong.
    """
    if dtype not in _DTYPES:
        raise ModelError(f"model.dtype={dtype!r} is not known: use one of {', '.join(_DTYPES)}")
    if not (Path(path) / "config.json").is_file():
        raise ModelError(f"model.path={str(path)!r} has no config.json: give a model directory")
    try:
        # Typed loosely: with `output_loading_info` transformers returns a pair its types do not know.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=_DTYPES[dtype],
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model.path={str(path)!r} does not load: {error}") from error
    model, report = loaded
    # transformers fills what is missing with random numbers, and says so only in a log.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model.path={str(path)!r} lacks the weights {missing[:4]}: export it anew"
        )
    # The loader maps the file into memory: whoever replaced it would change the weights of a run.
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.data = tensor.data.clone()
    return model.eval()
