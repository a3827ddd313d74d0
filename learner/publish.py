"""Hands versions of the weights to engines on the same node, as files.

Where they are, and how one replaces another, is `rollout/weight_files.py`'s. The reader is
`rollout.weights.read_tensors`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from learner.lora import published_name
from rollout.weight_files import WeightFiles
from rollout.weights import (
    Adapter,
    Checksum,
    Manifest,
    WeightsError,
    make_header,
    note_version,
)

# Written and then added to the checksum while the processor still has it at hand.
_PART_BYTES = 4 << 20


class _Contents:
    """What a file will hold: tensors as safetensors lays them out, one at a time."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._header, self._order = make_header(tensors)
        self.num_bytes = len(self._header) + sum(tensor.nbytes for tensor in tensors.values())
        self.checksum = ""
        """Of what was written last."""

    def write(self, file: BinaryIO) -> None:
        """Write all of it; raises OSError."""
        checksum = Checksum()
        for part in self._parts():
            file.write(part)
            checksum.update(part)
        self.checksum = checksum.hexdigest()

    def _parts(self) -> Iterator[bytes | memoryview]:
        yield self._header
        for name in self._order:
            flat = self._tensors[name].detach().reshape(-1).cpu()
            whole = flat.view(torch.uint8).numpy().data
            for start in range(0, len(whole), _PART_BYTES):
                yield whole[start : start + _PART_BYTES]


class Publisher:
    """Owns the weight files of one run, and sees that its versions increase."""

    def __init__(self, *, directory: str, fallback: Path, run_id: str, log: Path) -> None:
        """Remove what a killed process of the same run left behind.

        `log` always names the newest version that may have been published.

        Raises ValueError for a `run_id` that cannot be part of a file name.
        """
        self._log = log
        self._files = WeightFiles(run_id, directory=Path(directory), fallback=fallback)
        self._version: int | None = None

    def publish(
        self,
        tensors: Mapping[str, Tensor],
        *,
        version: int,
        step: int,
        adapter: Adapter | None = None,
    ) -> Manifest:
        """Write `tensors` as `version`; raises WeightsError unless versions strictly increase.

        With `adapter` they are what it describes, named as peft does. The file of the version before the
        last one is overwritten. Raises OSError when neither directory takes the file.
        """
        if self._version is not None and version <= self._version:
            raise WeightsError(
                f"version {version} follows version {self._version}: versions strictly increase"
            )
        # Before anything else: whatever happens now, this number is used up.
        note_version(self._log, version)
        contents = _Contents(tensors)
        path = self._files.write(contents.num_bytes, contents.write)
        self._version = version
        return Manifest(
            version=version,
            step=step,
            path=str(path),
            num_bytes=contents.num_bytes,
            checksum=contents.checksum,
            adapter=adapter,
        )

    def close(self) -> None:
        """Remove the files; engines that have not read the last version no longer can."""
        self._files.close()


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once; of an adapted model without adapters.

    A tied weight keeps its first name only, as Hugging Face files have it: safetensors refuses
    aliases, and a reader would fill the second name from a copy.
    """
    seen: set[int] = set()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        published = published_name(name)
        if published is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            weights[published] = tensor
    return weights
