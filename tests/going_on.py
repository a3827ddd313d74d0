"""A real run that was killed goes on to its end, and nothing is lost or trained twice."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from rollout import audit
from rollout.processes import is_alive, read_pids

ROOT = Path(__file__).parent.parent


@dataclass(slots=True, kw_only=True, frozen=True)
class Ended:
    """What became of it."""

    stdout: str
    versions: list[int]
    """Of each step, in order."""
    groups: set[str]
    """Those that were trained on."""
    summary: dict[str, Any]


def go_on(run_dir: Path, *, steps: int) -> Ended:
    """Resume a run of so many steps and check all that is true of any run that ended."""
    command = [sys.executable, "launch.py", "--resume", str(run_dir)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    events = list(audit.events(run_dir, "trained"))
    assert [event["step"] for event in events] == [*range(1, steps + 1)]
    versions = [event["version"] for event in events]
    assert versions == sorted(set(versions))
    groups = Counter(group for event in events for group in event["groups"])
    assert max(groups.values()) == 1
    summary = msgspec.json.decode((run_dir / "summary.json").read_bytes())
    assert summary["ledger_balanced"] is True
    assert [process.name for process in read_pids(run_dir) if is_alive(process)] == []
    return Ended(stdout=done.stdout, versions=versions, groups=set(groups), summary=summary)
