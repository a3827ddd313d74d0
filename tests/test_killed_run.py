"""Processes of a real run are killed between the writing of something and its being announced."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollout import checkpoints
from rollout.weights import newest_version, run_id, version_log
from tests.going_on import ROOT, go_on

STEPS = 8
SETTINGS = [
    f"learner.steps={STEPS}",
    "checkpoint.every=2",
    "logging.wandb=off",
    "eval.before=false",
    *(f"eval.sets.{name}.count=5" for name in ("fresh", "harder", "held_out", "unseen")),
]

# Every interpreter of the run imports it first. The process that comes to the fatal moment is killed.
FATAL = """
import os, re, signal, sys

def watch(event, args):
    if event == {event!r} and re.search({pattern!r}, str(args[{place}])):
        with open({told!r}, "ab") as told:
            told.write(b"x")
        if os.path.getsize({told!r}) >= {number}:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
"""


def launch(folder: Path, *words: str, **fatal: object) -> subprocess.CompletedProcess[str]:
    """A run in which some process dies just before `number` times `event` was done to `pattern`."""
    folder.mkdir()
    told = folder / "told"
    (folder / "sitecustomize.py").write_text(FATAL.format(**fatal, told=str(told)))
    command = [sys.executable, "launch.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert told.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_killed_between_what_is_written_and_its_announcement(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # The coordinator, when the learner's part of a checkpoint is written and its own is not.
    pattern = r"step_4/resume/coordinator\.msgpack$"
    killed = launch(
        tmp_path / "first",
        f"run.dir={run_dir}",
        *SETTINGS,
        event="open",
        pattern=pattern,
        place=0,
        number=1,
    )
    assert killed.returncode == -signal.SIGKILL
    unfinished = checkpoints.directory(run_dir, 4)
    assert (unfinished / "resume" / "trainer.pt").exists()
    newest = checkpoints.latest(run_dir)
    assert newest == checkpoints.directory(run_dir, 2)

    # The learner, when the second version since is written and not yet named.
    pattern = r"millrace-[^/]*-\d\.safetensors$"
    failed = launch(
        tmp_path / "second",
        "--resume",
        str(run_dir),
        event="os.rename",
        pattern=pattern,
        place=1,
        number=4,
    )
    assert failed.returncode > 0, failed.stdout[-3000:]
    assert "resuming after step 2" in failed.stdout
    lost = newest_version(version_log(run_dir))
    newest = checkpoints.latest(run_dir)
    assert newest is not None and 2 <= checkpoints.step_of(newest) < STEPS

    ended = go_on(run_dir, steps=STEPS)
    assert f"resuming after step {checkpoints.step_of(newest)}" in ended.stdout
    # What was noted before the kill was never anybody's.
    assert lost not in ended.versions and max(ended.versions) > lost
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert f"step_{STEPS}" in kept and all(
        (run_dir / "checkpoints" / k / "DONE").exists() for k in kept
    )
    # Nothing of the run is left where weights are handed over.
    assert not list(Path("/dev/shm").glob(f"millrace-{run_id(run_dir)}*"))
