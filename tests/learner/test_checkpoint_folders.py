import subprocess
import sys
from pathlib import Path

import pytest

from rollout import checkpoints


def make(run_dir: Path, step: int, *, done: bool = True) -> Path:
    directory = checkpoints.begin(run_dir, step)
    (directory / "hf").mkdir()
    (directory / "hf" / "model").touch()
    if done:
        checkpoints.mark_done(directory)
    return directory


def test_latest_is_the_highest_step_that_is_done(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path) is None
    # By number, not by name: step_9 sorts after step_10.
    make(tmp_path, 9)
    ten = make(tmp_path, 10)
    make(tmp_path, 11, done=False)
    (tmp_path / "checkpoints" / "step_old").mkdir()
    (tmp_path / "checkpoints" / "step_99").touch()
    assert checkpoints.latest(tmp_path) == ten
    assert checkpoints.step_of(ten) == 10


def test_begin_clears_an_unfinished_attempt(tmp_path: Path) -> None:
    make(tmp_path, 5, done=False)
    assert list(checkpoints.begin(tmp_path, 5).iterdir()) == []


def test_prune_keeps_the_newest_and_removes_older_remains(tmp_path: Path) -> None:
    done = {step: make(tmp_path, step) for step in (8, 9, 10)}
    remains = make(tmp_path, 7, done=False)
    in_progress = make(tmp_path, 11, done=False)
    assert checkpoints.prune(tmp_path, keep=2) == [remains, done[8]]
    left = set((tmp_path / "checkpoints").iterdir())
    assert left == {done[9], done[10], in_progress}


def test_prune_never_removes_the_only_checkpoint(tmp_path: Path) -> None:
    only = make(tmp_path, 1)
    assert checkpoints.prune(tmp_path, keep=3) == []
    with pytest.raises(ValueError, match="keep=0"):
        checkpoints.prune(tmp_path, keep=0)
    assert checkpoints.latest(tmp_path) == only


def test_prune_without_a_complete_checkpoint_removes_nothing(tmp_path: Path) -> None:
    unfinished = make(tmp_path, 1, done=False)
    assert checkpoints.prune(tmp_path, keep=1) == []
    assert unfinished.exists()


def test_a_directory_of_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step_<number>"):
        checkpoints.step_of(tmp_path)


def test_the_coordinator_needs_no_torch_to_handle_checkpoints() -> None:
    code = "import sys, rollout.checkpoints; sys.exit('torch' in sys.modules)"
    root = Path(checkpoints.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_the_newest_that_is_not_after_a_step(tmp_path: Path) -> None:
    for step in (2, 4, 8):
        make(tmp_path, step)
    make(tmp_path, 6, done=False)
    found = [checkpoints.not_after(tmp_path, step) for step in (1, 2, 7, 99)]
    assert [path.name if path else None for path in found] == [None, "step_2", "step_4", "step_8"]


def test_prune_spares_what_it_is_told_to(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    removed = checkpoints.prune(tmp_path, 1, spare=checkpoints.directory(tmp_path, 2))
    assert [path.name for path in removed] == ["step_1", "step_3"]
