"""Ctrl-C at several moments: exit 130, files flushed, no process of ours left."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout import audit
from rollout.processes import is_alive, read_pids

ROOT = Path(__file__).parent.parent

# From the signal to the last process's end.
BUDGET_S = 15.0


def interrupt(run_dir: Path, when: Callable[[], bool]) -> tuple[int, float]:
    """Start a run, send SIGINT once `when()` holds; returns the exit code and the seconds it took."""
    command = [sys.executable, "launch.py", f"run.dir={run_dir}", "logging.wandb=offline"]
    command += ["eval.sets.fresh.count=8", "eval.before=false"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 120
        while not when():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "the run never came that far"
            time.sleep(0.05)  # another process: nothing here to wait on
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.communicate(timeout=60)
        return process.returncode, time.monotonic() - begun


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["placing", "training"])
def test_ctrl_c_leaves_nothing_running_and_loses_nothing(tmp_path: Path, moment: str) -> None:
    run_dir = tmp_path / "run"
    marker = run_dir / ("pids.json" if moment == "placing" else "metrics.jsonl")
    code, took_s = interrupt(run_dir, marker.exists)
    assert code == 130
    assert took_s < BUDGET_S
    assert [process.name for process in read_pids(run_dir) if is_alive(process)] == []
    if moment == "training":
        counts = audit.recompute(run_dir)
        assert sum(counts.groups.values()) > 0
