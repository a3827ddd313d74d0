"""Weights for nodes that cannot read the learner's file: carried in chunks, put together again there.

    learner's node                                each node with engines
    file --> Sender.chunk --> Chunk, bytes --> Receiver.take --> file, by the same rules

Who carries them from one to the other is none of this module's business (`rollout/ray_relay.py`). A
chunk is a stretch of the file: as it is, or, for a receiver that has the version sent before, what has
changed in it since. A version gets its name only once the checksum of the whole file is right.
"""

import math
import os
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from rollout.changes import Bytes, apply_changes, find_changes
from rollout.weight_files import WeightFiles
from rollout.weights import Manifest, WeightsError, checksum, mapped, number_width, parse_header

# Small enough for a few to be under way in the object store of a small cluster.
CHUNK_BYTES = 16 << 20


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """How a version is sent."""

    manifest: Manifest
    """As published: its path is on the learner's node."""
    chunk_bytes: int
    base: str = ""
    """Checksum of the file that changes are told against; empty: all chunks are whole."""
    width: int = 1
    """Bytes of the numbers that change."""

    @property
    def num_chunks(self) -> int:
        return math.ceil(self.manifest.num_bytes / self.chunk_bytes)

    def stretch(self, index: int) -> slice:
        """Where a chunk is in the file."""
        start = index * self.chunk_bytes
        return slice(start, min(start + self.chunk_bytes, self.manifest.num_bytes))


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a chunk beside its bytes."""

    version: int
    index: int
    is_whole: bool
    """Or what has changed, see `rollout/changes.py`."""
    checksum: str
    """Of the bytes that travel."""


class Sender:
    """Cuts published files into chunks. Holds on to the file it sent last, where changes are sent."""

    def __init__(self, *, delta: bool, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._delta = delta
        self._chunk_bytes = chunk_bytes
        self._parcel: Parcel | None = None
        self._new: Bytes | None = None
        self._old: Bytes | None = None

    def open(self, manifest: Manifest) -> Parcel:
        """Make a version ready to be sent: from now on its file may be replaced.

        Raises WeightsError when the file is not the one published.
        """
        base, width = "", 1
        self._old, self._new = (self._new if self._delta else None), None
        data = mapped(manifest)
        self._new = np.frombuffer(data, np.uint8)
        if self._old is not None and self._parcel is not None and _alike(self._old, self._new):
            base, width = self._parcel.manifest.checksum, number_width(data)
        self._parcel = Parcel(
            manifest=manifest, chunk_bytes=self._chunk_bytes, base=base, width=width
        )
        return self._parcel

    def chunk(self, version: int, index: int, *, has_base: bool) -> tuple[Chunk, Bytes]:
        """A chunk for receivers that have the base, or for those that have not."""
        parcel = self._parcel
        if parcel is None or self._new is None or parcel.manifest.version != version:
            raise WeightsError(f"version {version} is not being sent any more")
        stretch = parcel.stretch(index)
        data = self._new[stretch]
        changes = None
        if has_base:
            assert self._old is not None and parcel.base, "nobody has what was never sent"
            changes = find_changes(self._old[stretch], data, width=parcel.width)
        sent = data if changes is None else changes
        chunk = Chunk(
            version=version, index=index, is_whole=changes is None, checksum=checksum(sent.data)
        )
        return chunk, sent

    def done(self) -> None:
        """Nobody asks for chunks of this version any more."""
        if not self._delta:
            self._new = None


class Receiver:
    """Puts versions together in files of its own. Holds on to the last one, where changes are sent."""

    def __init__(self, run_id: str, *, directory: Path, fallback: Path, delta: bool) -> None:
        """Raises ValueError for a `run_id` that cannot be part of a file name."""
        self._files = WeightFiles(run_id, directory=directory, fallback=fallback)
        self._delta = delta
        self._parcel: Parcel | None = None
        self._file: BinaryIO | None = None
        self._base: Bytes | None = None
        self._base_checksum = ""

    def begin(self, parcel: Parcel) -> bool:
        """Make room for a version; returns whether changes alone will do. Raises OSError."""
        self._drop()
        self._file = self._files.begin(parcel.manifest.num_bytes)
        self._parcel = parcel
        return bool(parcel.base) and parcel.base == self._base_checksum

    def take(self, chunk: Chunk, data: Bytes) -> None:
        """Put a chunk where it belongs, in any order, from any thread; raises WeightsError, OSError."""
        parcel, file = self._parcel, self._file
        what = f"version {chunk.version}, chunk {chunk.index}"
        if parcel is None or file is None or parcel.manifest.version != chunk.version:
            raise WeightsError(f"{what}: that version is not being received any more")
        if checksum(data.data) != chunk.checksum:
            raise WeightsError(f"{what}: it was damaged on its way")
        stretch = parcel.stretch(chunk.index)
        if not chunk.is_whole:
            if self._base is None:
                raise WeightsError(f"{what}: changes came, and there is nothing that they change")
            try:
                data = apply_changes(self._base[stretch], data, width=parcel.width)
            except ValueError as error:
                raise WeightsError(f"{what}: {error}") from error
        if len(data) != stretch.stop - stretch.start:
            raise WeightsError(f"{what}: it has {len(data)} bytes")
        at = stretch.start
        view = data.data
        while view:
            num_written = os.pwrite(file.fileno(), view, at)
            view, at = view[num_written:], at + num_written

    def finish(self, version: int) -> Manifest:
        """Check the whole; returns where it is. Raises WeightsError unless it is what was published."""
        parcel = self._parcel
        if parcel is None or self._file is None or parcel.manifest.version != version:
            raise WeightsError(f"version {version} is not being received any more")
        received = msgspec.structs.replace(parcel.manifest, path=str(self._files.unfinished))
        self._drop()
        data = mapped(received)
        if self._delta:
            self._base, self._base_checksum = np.frombuffer(data, np.uint8), received.checksum
        return msgspec.structs.replace(received, path=str(self._files.commit()))

    def close(self) -> None:
        """Remove the files."""
        self._drop()
        self._base = None
        self._files.close()

    def _drop(self) -> None:
        self._parcel = None
        if self._file is not None:
            self._file.close()
            self._file = None


def _alike(old: Bytes, new: Bytes) -> bool:
    """Whether both files have the same tensors in the same places: their headers say the same."""
    end, _ = parse_header(old.data)
    return len(old) == len(new) and bool(np.array_equal(old[:end], new[:end]))
