"""What describes a published set of weights (`Manifest`), its checksum, and how a reader loads it.

The sender is `learner/publish.py`. A manifest travels through the coordinator, which must not import
torch; the tensors go from the learner to each engine directly.
"""

import hashlib
import logging
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from torch import Tensor


logger = logging.getLogger(__name__)

# One is read while the next is written.
NUM_BUFFERS = 2
# One is served while the next is loaded.
NUM_PINS = 2

# Stands before the reason in what another process says of weights that it refused: there its
# WeightsError is text.
REFUSAL = "refused weights: "


class WeightsError(Exception):
    """A published set of weights is missing, damaged, or not for this model."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """What is said of a tensor before it is sent."""

    name: str
    dtype: str
    """As torch names it: `bfloat16`."""
    shape: list[int]


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """Low-rank updates of some matrices: each is W + alpha / rank * B @ A."""

    rank: int
    alpha: int
    target_modules: list[str]
    """The last part of the names of the modules that have one: `q_proj`."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One published version: a file to read, or tensors that the learner sends."""

    format: int = 1
    version: int
    step: int
    path: str = ""
    """A safetensors file with HF parameter names, or those of peft for an adapter."""
    num_bytes: int = 0
    checksum: str = ""
    """Of the file's bytes; the reader refuses the file when it differs."""
    adapter: Adapter | None = None
    """What the file is beside the weights of step 0, where it is not all weights."""
    transport: Literal["file", "nccl"] = "file"
    tensors: list[TensorSpec] = []
    """With `nccl`, what is sent, in order."""

    @property
    def is_sent(self) -> bool:
        """Whether the learner sends it while the engine loads it; nobody can read it again later."""
        return self.transport != "file"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where the learner waits for the workers of one engine, to send them weights from then on."""

    address: str
    port: int
    world_size: int
    """The learner, which is rank 0, and the engine's workers."""
    buffer_bytes: int
    """Tensors are sent in packed buffers of this size."""
    num_buffers: int


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


def run_id(run_dir: Path) -> str:
    """What names a run's weight files outside its directory."""
    # The name is for people who look at the directory; the hash tells runs of one name apart.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", run_dir.name)
    return f"{name}-{zlib.crc32(str(run_dir.resolve()).encode()):08x}"


def version_log(run_dir: Path) -> Path:
    """Where a run writes down the newest version it may have published."""
    return run_dir / "version.json"


def note_version(log: Path, version: int) -> None:
    """Write down that `version` is used up."""
    log.parent.mkdir(parents=True, exist_ok=True)
    partial = log.with_suffix(".tmp")
    partial.write_bytes(msgspec.json.encode({"format": 1, "version": version}))
    partial.replace(log)


def newest_version(log: Path) -> int:
    """The newest version that may have been published, 0 when none was."""
    return msgspec.json.decode(log.read_bytes())["version"] if log.exists() else 0


def buffer_names(directory: Path, run_id: str) -> list[tuple[Path, Path]]:
    """The final and the temporary name of each buffer."""
    finals = [directory / f"millrace-{run_id}-{i}.safetensors" for i in range(NUM_BUFFERS)]
    return [(path, path.with_name(path.name + ".partial")) for path in finals]


def pin_names(directory: Path, run_id: str) -> list[Path]:
    """The names under which versions stay readable while their buffers are written anew."""
    return [directory / f"millrace-{run_id}-pinned-{i}.safetensors" for i in range(NUM_PINS)]


def pin(manifest: Manifest, run_id: str, *, place: int) -> Manifest:
    """Keep the file of a version under a second name; blocks for a moment, copies nothing.

    A buffer is replaced by a rename, which leaves this link to the old file alone. `place`: which of the
    run's pins it is; the version there before is let go of. Raises OSError when the file is gone. Whether
    it was still that version when it was pinned, the checksum tells the reader.
    """
    source = Path(manifest.path)
    path = pin_names(source.parent, run_id)[place]
    path.unlink(missing_ok=True)
    path.hardlink_to(source)
    return msgspec.structs.replace(manifest, path=str(path))


def unpin(pinned: Manifest) -> None:
    """Let go of a pinned version."""
    Path(pinned.path).unlink(missing_ok=True)


def sweep(directories: Iterable[Path], run_id: str) -> None:
    """Remove the weight files of a run, whoever left them."""
    # Exact names: a pattern would also match the files of a run whose id starts with this one.
    for directory in directories:
        buffers = [path for names in buffer_names(directory, run_id) for path in names]
        for path in [*buffers, *pin_names(directory, run_id)]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                # Not ours to remove; a publisher finds out whether the directory is of use.
                logger.warning("cannot remove %s: %s", path, error)
