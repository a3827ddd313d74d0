"""The text of pools whose source is a path, kept in the run's directory: `run_dir/pools/<name>-<number>`.

What a run trained on can be read, and a run that goes on has it, whatever became of the source.
"""

import os
import re
import shutil
from pathlib import Path

from envpool import folder

FOLDER = "pools"


def keep(run_dir: Path, name: str, source: str) -> str:
    """Copy the text of a pool; returns where, below `run_dir`, or nothing for what is no path.

    What lies there already stays where it is. Raises ConfigError where there is nothing to copy.
    """
    if not folder.is_path(source):
        return ""
    kept = run_dir / FOLDER
    if is_kept(run_dir, source):
        # Without `..`, by which a path below the directory may lead out of it.
        return _real(source).relative_to(_real(run_dir)).as_posix()
    files = folder.read(f"pools.{name}.source={source!r}", source)
    kept.mkdir(exist_ok=True)
    numbers = [one.name.rpartition("-")[2] for one in kept.iterdir()]
    # What somebody else put there has no number.
    number = 1 + max((int(one) for one in numbers if one.isdecimal()), default=0)
    copy = kept / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{number}"
    folder.write(files, copy)
    return copy.relative_to(run_dir).as_posix()


def is_kept(run_dir: Path, source: str) -> bool:
    """Whether a source lies among what is kept already, and so is not ours to remove."""
    return folder.is_path(source) and _real(run_dir / FOLDER) in _real(source).parents


def drop(run_dir: Path, code: str) -> None:
    """Remove a copy that came to nothing."""
    if code:
        shutil.rmtree(run_dir / code, ignore_errors=True)


def in_their_words(text: str, copy: str, source: str) -> str:
    """A message about a copy, as one about what was copied: a file, or a directory."""
    path = Path(source)
    return text.replace(copy, str(path.parent if path.suffix == ".py" else path))


def _real(path: str | Path) -> Path:
    # Unlike `Path.expanduser`, this leaves the home of nobody as it is: reading says what is wrong.
    return Path(os.path.expanduser(path)).resolve()
