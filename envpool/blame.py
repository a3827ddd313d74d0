"""Where in an author's code something is wrong: file and line, for an error message of one line."""

import inspect
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import configs

# Frames in these files are this program's own, never an author's. `envpool/envs` is not among them.
_OURS = frozenset(
    {Path(__file__).parent, Path(configs.__file__).parent, Path(__file__).parents[1] / "rollout"}
)
_LIBRARIES = tuple(
    Path(path)
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
)
# Characters of a message of somebody else's that are kept.
MAX_CHARS = 300


def raised_at(error: BaseException) -> str:
    """`file:line` of the innermost frame that is an author's; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return _show(error.filename, error.lineno or 1)
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [
        frame
        for frame in reversed(frames)
        if not frame.filename.startswith("<") and Path(frame.filename).parent not in _OURS
    ]
    # What a library was asked wrongly is a mistake of the line that asked.
    found = next((frame for frame in theirs if not _is_library(frame.filename)), None)
    found = found or next(iter(theirs), None)
    return _show(found.filename, found.lineno or 1) if found else ""


def defined_at(thing: Callable[..., Any] | type) -> str:
    """`file:line` of a function or class; empty where that cannot be known."""
    try:
        if isinstance(thing, type):
            return _show(inspect.getsourcefile(thing) or "", inspect.getsourcelines(thing)[1])
        code = inspect.unwrap(thing).__code__
        return _show(code.co_filename, code.co_firstlineno)
    except (OSError, TypeError, AttributeError, ValueError):
        return ""


def in_words(error: BaseException) -> str:
    """Type and message on one line."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {shorten(text)}" if text else type(error).__name__


def shorten(text: str) -> str:
    """A text on one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}..."


def _is_library(name: str) -> bool:
    return any(Path(name).is_relative_to(folder) for folder in _LIBRARIES)


def _show(name: str, line: int) -> str:
    path = Path(name)
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
