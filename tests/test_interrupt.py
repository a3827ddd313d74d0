"""Ctrl-C at several moments: exit 130, files flushed, no process of ours left."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import launch
from rollout import audit
from rollout.processes import Process, describe, is_alive, read_pids

ROOT = Path(__file__).parent.parent

# From the signal to the last process's end.
BUDGET_S = 15.0


def interrupt(run_dir: Path, when: Callable[[], bool]) -> tuple[int, float, list[Process]]:
    """Start a run, send SIGINT once `when()` holds.

    Returns the exit code, the seconds it took, and every process there was below it.
    """
    command = [sys.executable, "launch.py", f"run.dir={run_dir}", "logging.wandb=offline"]
    command += ["eval.sets.fresh.count=8", "eval.before=false"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 120
        while not when():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "the run never came that far"
            time.sleep(0.05)  # another process: nothing here to wait on
        seen = [describe("", child.pid) for child in psutil.Process(process.pid).children(True)]
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.communicate(timeout=60)
        return process.returncode, time.monotonic() - begun, seen


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["placing", "training"])
def test_ctrl_c_leaves_nothing_running_and_loses_nothing(tmp_path: Path, moment: str) -> None:
    run_dir = tmp_path / "run"
    marker = run_dir / ("logs/actor-0.log" if moment == "placing" else "metrics.jsonl")
    code, took_s, seen = interrupt(run_dir, marker.exists)
    assert code == 130
    assert took_s < BUDGET_S
    assert [process.name for process in seen if is_alive(process)] == []
    assert "launch" in {process.name for process in read_pids(run_dir)}
    if moment == "training":
        counts = audit.recompute(run_dir)
        assert sum(counts.groups.values()) > 0


def test_a_job_that_ignores_ctrl_c_goes_on_ignoring_it_and_says_what_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `launch.py &` of a script
    try:
        launch.acknowledge_interrupts()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert f"Ctrl-C is ignored here (a background job): kill {os.getpid()} ends" in caplog.text
    finally:
        signal.signal(signal.SIGINT, before)
