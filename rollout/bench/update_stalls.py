"""What a weight update costs an engine: seconds in which nothing is generated, by update mode."""

import asyncio
import statistics
from dataclasses import dataclass
from pathlib import Path

from rollout.bench.same_weights import published, renew
from rollout.engine import Engine, UpdateMode, UpdateReport
from rollout.types import Sampling
from rollout.weights import Manifest

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
    async with published(model_path) as manifest:
        return {mode.value: await stall(engine, manifest, mode, Load()) for mode in UpdateMode}


async def stall(engine: Engine, manifest: Manifest, mode: UpdateMode, load: Load) -> float:
    """The median stall of updates of one mode, in seconds, with requests under way."""
    reports: list[UpdateReport] = []
    for _ in range(load.updates):
        async with asyncio.TaskGroup() as tasks:
            for seed in range(load.requests):
                prompt = [1 + seed] * PROMPT_TOKENS
                sampling = Sampling(max_tokens=load.reply_tokens, seed=seed)
                tasks.create_task(engine.generate(prompt, sampling))
            while engine.stats().running < load.requests // 2:  # noqa: ASYNC110 engines tell nobody
                await asyncio.sleep(0.002)
            reports.append(await renew(engine, manifest, mode))
    return statistics.median(report.stall_s for report in reports)
