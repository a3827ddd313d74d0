"""What describes a published set of weights (`Manifest`), its checksum, and how a reader loads it.

The sender is `learner/publish.py`. A manifest travels through the coordinator, which must not import
torch; the tensors go from the learner to each engine directly.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


class WeightsError(Exception):
    """A published set of weights is missing, damaged, or not for this model."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One published version. `path` is a safetensors file with HF parameter names."""

    format: int = 1
    version: int
    step: int
    path: str
    num_bytes: int
    checksum: str
    """Of the file's bytes; the reader refuses the file when it differs."""


def checksum(data: bytes) -> str:
    """BLAKE2b of the bytes, as hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_tensors(manifest: Manifest) -> "dict[str, Tensor]":
    """Load the tensors of `manifest`; raises WeightsError unless the file is exactly the one sent."""
    # Only readers need torch: the coordinator handles manifests without it.
    from safetensors.torch import load

    try:
        data = Path(manifest.path).read_bytes()
    except OSError as error:
        raise WeightsError(f"version {manifest.version}: {error}") from error
    if len(data) != manifest.num_bytes or checksum(data) != manifest.checksum:
        raise WeightsError(
            f"version {manifest.version}: {manifest.path} is not the file that was published "
            f"({len(data)} bytes, {manifest.num_bytes} expected)"
        )
    return load(data)
