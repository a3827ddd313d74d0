"""What a weight update costs an engine: seconds in which nothing is generated, by update mode."""

import asyncio
import statistics
import tempfile
from pathlib import Path

from safetensors.torch import save

from rollout.engine import Engine, UpdateMode, UpdateReport
from rollout.model import load_model
from rollout.types import Sampling
from rollout.weights import Manifest, checksum

# Requests under way during each update, and updates of each mode.
REQUESTS, UPDATES = 32, 5
PROMPT_TOKENS, REPLY_TOKENS = 60, 150


async def measure(engine: Engine, model_path: Path) -> dict[str, float]:
    """The median stall of each mode, in seconds, with requests under way."""
    with tempfile.TemporaryDirectory(dir=_shared()) as folder:
        manifest = await asyncio.to_thread(_publish, model_path, Path(folder) / "weights")
        return {mode.value: await _stall(engine, manifest, mode) for mode in UpdateMode}


def _shared() -> str | None:
    """Where a run publishes its weights, too."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _publish(model_path: Path, file: Path) -> Manifest:
    """The weights that are served already, as a version to load: only the way is measured."""
    tensors = load_model(model_path, "float32").named_parameters()
    data = save({name: tensor.detach() for name, tensor in tensors})
    file.write_bytes(data)
    return Manifest(version=0, step=0, path=str(file), num_bytes=len(data), checksum=checksum(data))


async def _stall(engine: Engine, manifest: Manifest, mode: UpdateMode) -> float:
    reports: list[UpdateReport] = []
    for _ in range(UPDATES):
        version = engine.version + 1
        newer = Manifest(
            version=version,
            step=version,
            path=manifest.path,
            num_bytes=manifest.num_bytes,
            checksum=manifest.checksum,
        )
        async with asyncio.TaskGroup() as tasks:
            for seed in range(REQUESTS):
                prompt = [1 + seed] * PROMPT_TOKENS
                sampling = Sampling(max_tokens=REPLY_TOKENS, seed=seed)
                tasks.create_task(engine.generate(prompt, sampling))
            while engine.stats().running < REQUESTS // 2:  # noqa: ASYNC110 engines tell nobody
                await asyncio.sleep(0.002)
            reports.append(await engine.update_weights(newer, mode))
    return statistics.median(report.stall_s for report in reports)
