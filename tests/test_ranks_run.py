"""A run whose learner is two ranks: one is killed, and one rank alone goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout import checkpoints
from rollout.audit import events
from rollout.logs import log_path
from rollout.processes import is_alive, read_pids

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "learner.ranks=2",
    "learner.steps=100",
    "checkpoint.every=2",
    "logging.wandb=off",
    "eval.before=false",
    "eval.after=false",
]


def end(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    return said


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_ends_with_a_rank_and_goes_on_with_another_number(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "launch.py", f"run.dir={run_dir}", *SETTINGS]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 240
        while checkpoints.latest(run_dir) is None:
            assert process.poll() is None, end(process)
            assert time.monotonic() < deadline, "the run never came that far"
            time.sleep(0.05)  # another process: nothing here to wait on
        (rank,) = [one for one in read_pids(run_dir) if one.name == "learner-1"]
        os.kill(rank.pid, signal.SIGKILL)
        said = end(process)
    assert process.returncode == 1, said
    assert "rank 1 of the learner died (see logs/learner-1.log)" in said
    assert [one.name for one in read_pids(run_dir) if is_alive(one)] == []

    newest = checkpoints.latest(run_dir)
    assert newest is not None
    done = checkpoints.step_of(newest) + 2
    more = ["learner.ranks=1", f"learner.steps={done}"]
    command = [sys.executable, "launch.py", "--resume", str(run_dir), *more]
    resumed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert resumed.returncode == 0, resumed.stdout[-3000:] + resumed.stderr[-3000:]
    trained = [event["step"] for event in events(run_dir, "trained")]
    assert trained == [*range(1, done + 1)]
    assert "written by 2 ranks, read by rank 0 of 1" in log_path(run_dir, "learner").read_text()
