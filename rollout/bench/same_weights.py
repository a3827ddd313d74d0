"""The weights that an engine serves already, as another version: only the way is measured, or forgetting."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from safetensors.torch import save

from rollout.engine import Engine, UpdateMode, UpdateReport
from rollout.model import load_model
from rollout.weights import Manifest, checksum


def shared() -> str | None:
    """Where a run publishes its weights, too."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@asynccontextmanager
async def published(model_path: Path) -> AsyncIterator[Manifest]:
    """A model's weights in float32, to load in the meantime."""
    with tempfile.TemporaryDirectory(dir=shared()) as folder:
        yield await asyncio.to_thread(_publish, model_path, Path(folder) / "weights")


def _publish(model_path: Path, file: Path) -> Manifest:
    tensors = load_model(model_path, "float32").named_parameters()
    data = save({name: tensor.detach() for name, tensor in tensors})
    file.write_bytes(data)
    return Manifest(version=0, step=0, path=str(file), num_bytes=len(data), checksum=checksum(data))


async def renew(engine: Engine, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
    """Load them as the next version."""
    version = engine.version + 1
    newer = msgspec.structs.replace(manifest, version=version, step=version)
    return await engine.update_weights(newer, mode)
