"""An engine over several worker processes: vLLM's tensor parallelism, with two of them on a CPU."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from configs.schema import VllmSection
from rollout.engine import UpdateMode
from rollout.engine_vllm import VllmEngine
from rollout.model import load_model
from tests.engines import Served, ask, checkpoint, needs_vllm, ragged, sampling, started

ROOT = Path(__file__).parent.parent.parent
pytestmark = needs_vllm

torch.set_num_threads(1)


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


async def test_two_workers_compute_and_update_as_one(tmp_path: Path) -> None:
    def prepare() -> Served:
        paths = [checkpoint(tmp_path / f"model_{seed}", seed=seed) for seed in range(2)]
        return Served(None, tmp_path, [load_model(path, "float32") for path in paths])  # pyright: ignore[reportArgumentType]

    served = await asyncio.to_thread(prepare)
    prompts = ragged(4)
    options = VllmSection(tensor_parallel=2, update_timeout_s=60)
    async with started("vllm", tmp_path / "model_0", max_running=8, vllm=options) as engine:
        assert isinstance(engine, VllmEngine)
        core, *_ = engine.pids
        # Whoever is below the engine's process computes, too; a process of Python's own does not.
        below = {child.pid for child in await asyncio.to_thread(_children, core)}
        assert len(engine.pids) == 3 and set(engine.pids) - {core} <= below
        manifest = await asyncio.to_thread(served.publish, 1)
        async with asyncio.TaskGroup() as tasks:
            asked = ask(engine, tasks, prompts, 100)
            await sampling(engine, 80, since=0)
            await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
    for prompt, task in zip(prompts, asked, strict=True):
        assert [span.version for span in task.result().spans] == [0, 1]
        await asyncio.to_thread(served.assert_exact, prompt, task.result())


PROGRAM = """
import asyncio, sys
from pathlib import Path
from configs.schema import VllmSection
from tests.engines import start

async def main():
    await start("vllm", Path(sys.argv[1]), vllm=VllmSection(tensor_parallel=2))
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_all_its_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(path), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    try:
        assert await program.stdout.readline() == b"ready\n"
        children = await asyncio.to_thread(_children, program.pid)
        assert len(children) >= 3
        ends = [os.pidfd_open(child.pid) for child in children]
    finally:
        program.send_signal(signal.SIGKILL)
        await program.wait()
    for end in ends:
        readable, _, _ = await asyncio.to_thread(select.select, [end], [], [], 60)
        assert readable == [end]
        os.close(end)
