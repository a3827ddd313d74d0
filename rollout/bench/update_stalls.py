"""What a weight update costs an engine: seconds in which nothing is generated, by update mode."""

import asyncio
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save

from rollout.engine import Engine, UpdateMode, UpdateReport
from rollout.model import load_model
from rollout.types import Sampling
from rollout.weights import Manifest, checksum

PROMPT_TOKENS = 60


@dataclass(slots=True, kw_only=True, frozen=True)
class Load:
    """What the engine does meanwhile."""

    requests: int = 32
    """Under way during each update."""
    updates: int = 5
    """Of each mode."""
    reply_tokens: int = 150


async def measure(engine: Engine, model_path: Path) -> dict[str, float]:
    """The median stall of each mode, in seconds, with requests under way."""
    with tempfile.TemporaryDirectory(dir=shared()) as folder:
        manifest = await asyncio.to_thread(_publish, model_path, Path(folder) / "weights")
        return {mode.value: await stall(engine, manifest, mode, Load()) for mode in UpdateMode}


def shared() -> str | None:
    """Where a run publishes its weights, too."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _publish(model_path: Path, file: Path) -> Manifest:
    """The weights that are served already, as a version to load: only the way is measured."""
    tensors = load_model(model_path, "float32").named_parameters()
    data = save({name: tensor.detach() for name, tensor in tensors})
    file.write_bytes(data)
    return Manifest(version=0, step=0, path=str(file), num_bytes=len(data), checksum=checksum(data))


async def stall(engine: Engine, manifest: Manifest, mode: UpdateMode, load: Load) -> float:
    """The median stall of updates of one mode, in seconds, with requests under way."""
    reports: list[UpdateReport] = []
    for _ in range(load.updates):
        version = engine.version + 1
        newer = Manifest(
            version=version,
            step=version,
            path=manifest.path,
            num_bytes=manifest.num_bytes,
            checksum=manifest.checksum,
        )
        async with asyncio.TaskGroup() as tasks:
            for seed in range(load.requests):
                prompt = [1 + seed] * PROMPT_TOKENS
                sampling = Sampling(max_tokens=load.reply_tokens, seed=seed)
                tasks.create_task(engine.generate(prompt, sampling))
            while engine.stats().running < load.requests // 2:  # noqa: ASYNC110 engines tell nobody
                await asyncio.sleep(0.002)
            reports.append(await engine.update_weights(newer, mode))
    return statistics.median(report.stall_s for report in reports)
