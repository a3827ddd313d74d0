"""A real run whose sessions belong to a host, which is killed while it trains."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rollout import audit
from rollout.processes import is_alive, read_pids
from rollout.summary import Summary
from tests.waiting import wait

ROOT = Path(__file__).parent.parent


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_a_run_goes_on_when_its_host_is_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    settings = [
        "envpool.served_by=host",
        "learner.steps=12",
        "eval.before=false",
        "eval.after=false",
        "eval.sets={}",
        "logging.wandb=off",
        "checkpoint.every=0",
    ]
    with subprocess.Popen(
        [sys.executable, "launch.py", f"run.dir={run_dir}", *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        metrics = run_dir / "metrics.jsonl"
        wait(process, lambda: metrics.exists() and metrics.stat().st_size > 0)
        (host,) = [one.pid for one in read_pids(run_dir) if one.name == "host-0"]
        os.kill(host, signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-3000:]
    assert "host-0 died and is started again" in output
    summary = msgspec.json.decode((run_dir / "summary.json").read_bytes(), type=Summary)
    assert summary.steps == 12 and summary.ledger_balanced
    rows = list(audit.rows(run_dir))
    assert not [row.error for row in rows if row.stop.is_fault]
    assert [process.name for process in read_pids(run_dir) if is_alive(process)] == []
