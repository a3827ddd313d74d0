"""The files in which versions of weights are handed over on one node, whoever writes them.

Two buffers named by run id are written in turn, so that an engine may still read the last version while
the next is written. A version is written under a temporary name and renamed: under its own name a file
is always whole.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rollout.weights import NUM_BUFFERS, buffer_names, sweep

logger = logging.getLogger(__name__)

# Both buffers and the file being written are alive at once.
_NUM_FILES = NUM_BUFFERS + 1


class WeightFiles:
    """Owns the buffers of one run id: sweeps them at the start, removes them in `close`.

    They are in `directory`, or in `fallback` when `directory` is missing, not writable, or has room for
    fewer than three copies of the weights.
    """

    def __init__(self, run_id: str, *, directory: Path, fallback: Path) -> None:
        """Remove what a killed process of the same run left behind.

        Raises ValueError for a `run_id` that cannot be part of a file name.
        """
        if not re.fullmatch(r"[A-Za-z0-9._@-]+", run_id):
            raise ValueError(
                f"run id {run_id!r} names files: use only letters, digits, '.', '_', '-' and '@'"
            )
        self._run_id = run_id
        self._primary = directory
        self._fallback = fallback
        self._directory: Path | None = None
        self._num_written = 0
        self.close()

    def write(self, num_bytes: int, fill: Callable[[BinaryIO], None]) -> Path:
        """Write a version with `fill`, over the one before the last; raises OSError."""
        directory = self._where(num_bytes)
        try:
            path = self._fill(directory, fill)
        except OSError as error:
            if directory == self._fallback:
                raise
            logger.warning(
                "cannot write weights in %s (%s): using %s", directory, error, self._fallback
            )
            self._use_fallback()
            path = self._fill(self._fallback, fill)
        return path

    def begin(self, num_bytes: int) -> BinaryIO:
        """The file for the next version, to be completed with `commit`; raises OSError."""
        file = self._open(self._where(num_bytes))
        file.truncate(num_bytes)
        return file

    @property
    def unfinished(self) -> Path:
        """Where the file of `begin` is until then."""
        assert self._directory is not None, "nothing was begun"
        return self._names(self._directory)[1]

    def commit(self) -> Path:
        """Give the file that was begun its name; the version before the last one is gone then."""
        assert self._directory is not None, "nothing was begun"
        path, partial = self._names(self._directory)
        partial.rename(path)
        self._num_written += 1
        return path

    def close(self) -> None:
        """Remove the files; who has not opened the last version no longer can."""
        sweep({self._primary, self._fallback}, self._run_id)

    def _fill(self, directory: Path, fill: Callable[[BinaryIO], None]) -> Path:
        try:
            with self._open(directory) as file:
                fill(file)
        except OSError:
            self._names(directory)[1].unlink(missing_ok=True)
            raise
        return self.commit()

    def _open(self, directory: Path) -> BinaryIO:
        self._directory = directory
        partial = self._names(directory)[1]
        partial.unlink(missing_ok=True)
        # Shared directories such as /dev/shm are writable for every user: O_EXCL refuses a link
        # that someone else put under this name.
        return os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def _names(self, directory: Path) -> tuple[Path, Path]:
        return buffer_names(directory, self._run_id)[self._num_written % NUM_BUFFERS]

    def _where(self, num_bytes: int) -> Path:
        """The directory for weights of this size; once chosen, it stays."""
        if self._directory is not None:
            return self._directory
        if not self._primary.is_dir() or not os.access(self._primary, os.W_OK | os.X_OK):
            reason = "it is missing or not writable"
        elif shutil.disk_usage(self._primary).free < _NUM_FILES * num_bytes:
            reason = f"it has less than {_NUM_FILES} x {num_bytes} bytes free"
        else:
            return self._primary
        logger.warning("no weights in %s (%s): using %s", self._primary, reason, self._fallback)
        self._use_fallback()
        return self._fallback

    def _use_fallback(self) -> None:
        self._fallback.mkdir(parents=True, exist_ok=True)
