"""Where checkpoints lie, which of them exist, and how many are kept. Knows nothing of tensors.

`<run_dir>/checkpoints/step_N/` holds `hf/` and `resume/` (the learner's), whatever the coordinator
adds, and `DONE`, written last: a directory without it does not exist for anybody. The order is
`begin`, the parts in any order, `mark_done`, `prune`.
"""

import os
import re
import shutil
from pathlib import Path

DONE = "DONE"

_FOLDER = "checkpoints"


def directory(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, whether there is one or not."""
    return run_dir / _FOLDER / f"step_{step}"


def begin(run_dir: Path, step: int) -> Path:
    """Make the empty directory of a checkpoint; an unfinished one of the same step is removed.

    Raises FileExistsError when the step has a complete checkpoint.
    """
    path = directory(run_dir, step)
    if (path / DONE).exists():
        raise FileExistsError(f"{path} is a complete checkpoint: it is never written again")
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def mark_done(path: Path) -> None:
    """Declare that every part of the checkpoint is written.

    All files reach the disk before the mark does, so that a power cut cannot leave a mark on a
    half-written checkpoint.
    """
    for file in sorted(path.rglob("*")):
        _sync(file)
    mark = path / DONE
    mark.touch()
    _sync(mark)
    _sync(path)
    _sync(path.parent)


def latest(run_dir: Path) -> Path | None:
    """The complete checkpoint of the highest step, None when there is none."""
    complete = _complete(run_dir)
    return complete[max(complete)] if complete else None


def not_after(run_dir: Path, step: int) -> Path | None:
    """The newest complete checkpoint of `step` or before, None when there is none."""
    steps = [one for one in _complete(run_dir) if one <= step]
    return directory(run_dir, max(steps)) if steps else None


def prune(run_dir: Path, keep: int, *, spare: Path | None = None) -> list[Path]:
    """Remove all but the `keep` newest complete checkpoints and `spare`; returns what was removed.

    Unfinished directories older than the newest complete one are removed too: nothing continues
    them. Raises ValueError when `keep` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep={keep} would remove the only checkpoint: use at least 1")
    complete = _complete(run_dir)
    if not complete:
        return []
    kept = set(sorted(complete)[-keep:])
    if spare is not None:
        kept.add(step_of(spare))
    stale = [
        path
        for step, path in sorted(_directories(run_dir).items())
        if step < max(complete) and step not in kept
    ]
    for path in stale:
        # The mark goes first: a removal that is interrupted must not leave a checkpoint that
        # looks complete.
        (path / DONE).unlink(missing_ok=True)
        shutil.rmtree(path)
    return stale


def step_of(path: Path) -> int:
    """The step in a checkpoint directory's name; raises ValueError."""
    match = re.fullmatch(r"step_(\d+)", path.name)
    if match is None:
        raise ValueError(f"{path} is not a checkpoint: its name is not step_<number>")
    return int(match[1])


def _directories(run_dir: Path) -> dict[int, Path]:
    folder = run_dir / _FOLDER
    paths = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return {step_of(path): path for path in paths if path.is_dir()}


def _complete(run_dir: Path) -> dict[int, Path]:
    return {step: path for step, path in _directories(run_dir).items() if (path / DONE).is_file()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
