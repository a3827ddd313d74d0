"""Hands versions of the weights to engines on the same node, as files.

Two buffers named by run id are written in turn, so that an engine may still read the last version
while the next is written. A version is written under a temporary name and renamed: under its own
name a file is always whole. The reader is `rollout.weights.read_tensors`.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from rollout.weights import (
    NUM_BUFFERS,
    Adapter,
    Checksum,
    Manifest,
    WeightsError,
    buffer_names,
    make_header,
    note_version,
    sweep,
)

log = logging.getLogger(__name__)

# Both buffers and the file being written are alive at once.
_NUM_FILES = NUM_BUFFERS + 1

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
    """Owns the buffer files of one run: sweeps them at the start, removes them in `close`.

    Files go into `directory`, or into `fallback` when `directory` is missing, not writable, or has
    room for fewer than three copies of the weights.
    """

    def __init__(self, *, directory: str, fallback: Path, run_id: str, log: Path) -> None:
        """Remove what a killed process of the same run left behind.

        `log` always names the newest version that may have been published.

        Raises ValueError for a `run_id` that cannot be part of a file name.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]+", run_id):
            raise ValueError(
                f"run id {run_id!r} names files: use only letters, digits, '.', '_' and '-'"
            )
        self._run_id = run_id
        self._log = log
        self._primary = Path(directory)
        self._fallback = fallback
        self._directory: Path | None = None
        self._num_published = 0
        self._version: int | None = None
        sweep({self._primary, self._fallback}, self._run_id)

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
        path = self._write(contents)
        self._version = version
        self._num_published += 1
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
        sweep({self._primary, self._fallback}, self._run_id)

    def _write(self, contents: _Contents) -> Path:
        buffer = self._num_published % NUM_BUFFERS
        directory = self._directory or self._choose(contents.num_bytes)
        try:
            path = self._write_buffer(directory, buffer, contents)
        except OSError as error:
            if directory == self._fallback:
                raise
            log.warning("cannot publish in %s (%s): using %s", directory, error, self._fallback)
            directory = self._fallback
            directory.mkdir(parents=True, exist_ok=True)
            path = self._write_buffer(directory, buffer, contents)
        self._directory = directory
        return path

    def _choose(self, num_bytes: int) -> Path:
        """The directory for weights of this size."""
        if not self._primary.is_dir() or not os.access(self._primary, os.W_OK | os.X_OK):
            reason = "it is missing or not writable"
        elif shutil.disk_usage(self._primary).free < _NUM_FILES * num_bytes:
            reason = f"it has less than {_NUM_FILES} x {num_bytes} bytes free"
        else:
            return self._primary
        log.warning("not publishing in %s (%s): using %s", self._primary, reason, self._fallback)
        self._fallback.mkdir(parents=True, exist_ok=True)
        return self._fallback

    def _write_buffer(self, directory: Path, buffer: int, contents: _Contents) -> Path:
        path, partial = buffer_names(directory, self._run_id)[buffer]
        partial.unlink(missing_ok=True)
        # Shared directories such as /dev/shm are writable for every user: O_EXCL refuses a link
        # that someone else put under this name.
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                contents.write(file)
            partial.rename(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        return path


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each tensor once.

    A tied weight keeps its first name only, as Hugging Face files have it: safetensors refuses
    aliases, and a reader would fill the second name from a copy.
    """
    seen: set[int] = set()
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name] = tensor
    return weights
