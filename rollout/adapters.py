"""Adapters as vLLM reads them: a directory for each version, with names and settings as peft writes them."""

import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rollout.weights import Adapter, Manifest, WeightsError, read_tensors

_PREFIX = "millrace-adapters-"
_LOCK = "lock"
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")


class AdapterFolder:
    """The versions that an engine loads; `close` removes them."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, max_rank: int) -> None:
        """`shapes` are those of the model's tensors, by name."""
        self._shapes = shapes
        self._max_rank = max_rank
        _sweep()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held while this process lives. Under its own name it is locked from the beginning.
        partial = self._folder / "new"
        self._lock: int | None = os.open(partial, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        partial.rename(self._folder / _LOCK)
        self._num_put = 0

    def put(self, manifest: Manifest) -> Path:
        """Write the adapter of `manifest`; raises WeightsError for one that is not of this model."""
        adapter = manifest.adapter
        about = f"version {manifest.version}: {manifest.path}"
        if adapter is None:
            raise WeightsError(
                f"{about} has all weights, and engine.vllm.lora_rank={self._max_rank} takes adapters "
                "alone: set it to 0"
            )
        if adapter.rank > self._max_rank:
            raise WeightsError(
                f"{about} is an adapter of rank {adapter.rank}: raise engine.vllm.lora_rank="
                f"{self._max_rank} to that"
            )
        tensors = read_tensors(manifest)
        self._check(about, adapter, tensors)
        return self._write(adapter, tensors)

    def put_nothing(self) -> Path:
        """Write an adapter that changes nothing, for requests that meet the first one while they run."""
        name = next(name for name in self._shapes if name.endswith("_proj.weight"))
        out_size, in_size = self._shapes[name]
        module = name.removesuffix(".weight")
        tensors = {
            f"base_model.model.{module}.lora_A.weight": torch.zeros(1, in_size),
            f"base_model.model.{module}.lora_B.weight": torch.zeros(out_size, 1),
        }
        return self._write(
            Adapter(rank=1, alpha=1, target_modules=[module.rpartition(".")[2]]), tensors
        )

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _check(self, about: str, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        modules: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, tensor in tensors.items():
            found = _NAME.fullmatch(name)
            if found is None:
                raise WeightsError(
                    f"{about} has {name}: name tensors base_model.model.<module>.lora_A.weight and "
                    "lora_B.weight, as peft does"
                )
            modules.setdefault(found["module"], {})[found["part"]] = tuple(tensor.shape)
        if not modules:
            raise WeightsError(f"{about} is an adapter without tensors")
        for module, parts in modules.items():
            whole = self._shapes.get(f"{module}.weight")
            if whole is None or len(whole) != 2:
                raise WeightsError(f"{about} adapts {module}, which is no matrix of this model")
            if module.rpartition(".")[2] not in adapter.target_modules:
                raise WeightsError(
                    f"{about} adapts {module}, and its target_modules are {adapter.target_modules}"
                )
            expected = {"A": (adapter.rank, whole[1]), "B": (whole[0], adapter.rank)}
            if parts != expected:
                raise WeightsError(
                    f"{about} has {module} as {parts}, and rank {adapter.rank} of a matrix {whole} needs "
                    f"{expected}"
                )

    def _write(self, adapter: Adapter, tensors: Mapping[str, Tensor]) -> Path:
        path = self._folder / str(self._num_put)
        # Names of its own, as caches are told apart by the path; what was read is of no more use.
        if self._num_put > 1:
            shutil.rmtree(self._folder / str(self._num_put - 2), ignore_errors=True)
        self._num_put += 1
        path.mkdir()
        save_file(dict(tensors), path / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "target_modules": adapter.target_modules,
        }
        (path / "adapter_config.json").write_text(json.dumps(settings))
        return path


def _sweep() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # somebody else's, or about to be made
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
