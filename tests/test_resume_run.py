"""Every process of a real run is killed; `--resume` goes on as if the rest had never been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rollout import checkpoints, snapshot
from rollout.processes import is_alive, read_pids
from tests.going_on import ROOT, go_on

STEPS = 16
# Frequent checkpoints and slots for several batches: the newest one then has a queue.
SETTINGS = [
    f"learner.steps={STEPS}",
    "checkpoint.every=2",
    "rollout.max_lag=4",
    "logging.wandb=off",
    "eval.before=false",
    *(f"eval.sets.{name}.count=5" for name in ("fresh", "harder", "held_out", "unseen")),
]


def steps_trained(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(run_dir: Path, step: int) -> None:
    """Start a run and SIGKILL every process it recorded once it has trained `step`."""
    command = [sys.executable, "launch.py", f"run.dir={run_dir}", *SETTINGS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        deadline = time.monotonic() + 200
        while steps_trained(run_dir) < step:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, "the run never came that far"
            time.sleep(0.02)  # another process: nothing here to wait on
        for recorded in read_pids(run_dir):
            if is_alive(recorded):
                os.kill(recorded.pid, signal.SIGKILL)
        # What was started since belongs to the driver's session; it must go on its own.
        process.wait(10)


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_run_whose_every_process_was_killed_goes_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    killed = 5 + os.getpid() % 6  # another moment each time
    kill_at(run_dir, killed)
    checkpoint = checkpoints.latest(run_dir)
    assert checkpoint is not None
    state = snapshot.read(checkpoint)
    ended = go_on(run_dir, steps=STEPS)
    assert f"resuming after step {state.step} with {len(state.queued)} queued" in ended.stdout
    assert ended.versions[state.step] > ended.versions[state.step - 1] + 1
    # What waited was trained on: the queue came back.
    assert {record.id for record in state.queued[:4]} <= ended.groups
    assert steps_trained(run_dir) == STEPS
    assert ended.summary["lag_max"] <= 4
    # Ray's own processes go with the driver they belonged to.
    assert not any(str(run_dir) in " ".join(_command(p)) for p in psutil.process_iter())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
