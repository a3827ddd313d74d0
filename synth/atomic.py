"""Files that are there whole or not at all, also after a power cut or on a full disk."""

import os
from pathlib import Path

_PARTIAL = ".partial"


class WriteError(OSError):
    """A file that could not be written; the text names it, says why, and what to do."""


def write(path: Path, data: bytes) -> None:
    """Put `data` at `path`, whose directories are made. Raises WriteError; then nothing has changed there."""
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise WriteError(
            f"{path} could not be written ({len(data):,} bytes): {error.strerror or error}: make room or "
            "choose another directory, then run the same command again"
        ) from error


def remove(path: Path) -> None:
    """Remove a file, and have that on disk; nothing happens where there is none. Raises WriteError."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync(path.parent)
    except OSError as error:
        raise WriteError(f"{path} could not be removed: {error.strerror or error}") from error


def sync(folder: Path) -> None:
    """Have what a directory lists on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
