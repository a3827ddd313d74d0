"""What describes a published set of weights (`Manifest`), its checksum, and how a reader loads it.

The sender is `learner/publish.py`. A manifest travels through the coordinator, which must not import
torch; the tensors go from the learner to each engine directly, as a file in safetensors' format. It is
laid out and read here, without the copies of the whole that its library makes.
"""

import logging
import mmap
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import xxhash

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from torch import Tensor


logger = logging.getLogger(__name__)

# One is read while the next is written.
NUM_BUFFERS = 2
# One is served while the next is loaded.
NUM_PINS = 2

# In the names of files that were carried to another node it stands between run id and node.
CARRIED = "@"

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


# Of bytes that come in parts. It finds what was damaged or mixed up, not what an enemy made: the files
# are their owner's alone. It is as fast as memory, where BLAKE2b takes longer than all else together.
Checksum = xxhash.xxh3_128


def checksum(data: "ReadableBuffer") -> str:
    """XXH3 of the bytes, as hex."""
    return Checksum(data).hexdigest()


def mapped(manifest: Manifest) -> mmap.mmap:
    """The bytes of the file of `manifest`, as they are on its pages; nothing written here gets there.

    They stay as long as somebody holds them, whatever becomes of the name. Raises WeightsError unless
    the file is exactly the one published.
    """
    try:
        with Path(manifest.path).open("rb") as file:
            # Not read-only: torch warns of tensors that it must not write to.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise WeightsError(f"version {manifest.version}: {error}") from error
    if len(data) != manifest.num_bytes or checksum(data) != manifest.checksum:
        raise WeightsError(
            f"version {manifest.version}: {manifest.path} is not the file that was published "
            f"({len(data)} bytes, {manifest.num_bytes} expected)"
        )
    return data


def read_tensors(manifest: Manifest) -> "dict[str, Tensor]":
    """Load the tensors of `manifest`; raises WeightsError unless the file is exactly the one sent.

    They are views of the file's pages: nothing is copied.
    """
    # Only readers need torch: the coordinator handles manifests without it.
    import torch

    data = mapped(manifest)
    start, entries = parse_header(data)
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        dtype = getattr(torch, _DTYPES[entry.dtype])
        count = (entry.data_offsets[1] - entry.data_offsets[0]) // dtype.itemsize
        flat = (
            torch.frombuffer(data, dtype=dtype, count=count, offset=start + entry.data_offsets[0])
            if count
            else torch.empty(0, dtype=dtype)
        )
        tensors[name] = flat.view(entry.shape)
    return tensors


class TensorEntry(msgspec.Struct, frozen=True):
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]
    """In bytes, from the end of the header."""


# Safetensors' names of number types, and torch's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

# The length of the header, in bytes, comes before it as so many.
_LENGTH_BYTES = 8


def make_header(tensors: "Mapping[str, Tensor]") -> tuple[bytes, list[str]]:
    """What comes before the tensors in a file, and the order in which they follow it.

    Raises WeightsError for a number type that the format lacks.
    """
    names = {torch_name: name for name, torch_name in _DTYPES.items()}
    # The widest numbers first: then each tensor begins at a multiple of its numbers' width.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, TensorEntry] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names:
            raise WeightsError(f"{name} is {dtype}: weights are published as {', '.join(names)}")
        begin, end = end, end + tensor.nbytes
        entries[name] = TensorEntry(names[dtype], list(tensor.shape), (begin, end))
    header = msgspec.json.encode(entries)
    header += b" " * (-len(header) % _LENGTH_BYTES)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header, order


def parse_header(data: bytes | memoryview | mmap.mmap) -> tuple[int, dict[str, TensorEntry]]:
    """Where the tensors of a file begin, and what its header says of them; raises WeightsError."""
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        raw = msgspec.json.decode(bytes(data[_LENGTH_BYTES:start]), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(one, type=TensorEntry) for name, one in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WeightsError(f"not a safetensors file: {error}") from error
    if unknown := {entry.dtype for entry in entries.values()} - _DTYPES.keys():
        raise WeightsError(f"number types {sorted(unknown)} are not known here")
    return start, entries


def number_width(data: bytes | mmap.mmap) -> int:
    """Bytes of the narrowest number in a safetensors file."""
    _, entries = parse_header(data)
    bits = [re.search(r"[0-9]+", entry.dtype) for entry in entries.values()]
    return min((int(found[0]) // 8 if found else 1 for found in bits), default=1)


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
    # Exact names: a pattern would also match the files of a run whose id starts with this one. No run
    # id has the mark of what was carried to a node.
    for directory in directories:
        buffers = [path for names in buffer_names(directory, run_id) for path in names]
        carried = directory.glob(f"millrace-{run_id}{CARRIED}*")
        for path in [*buffers, *pin_names(directory, run_id), *carried]:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                # Not ours to remove; a publisher finds out whether the directory is of use.
                logger.warning("cannot remove %s: %s", path, error)
