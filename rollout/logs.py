"""Where log records go: a file per process, and the terminal for the driver's own.

Records of the driver pass through a queue to a thread, so that a slow terminal never holds the loop.
"""

import logging
import logging.handlers
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"

# Loggers whose records a person at the terminal wants; everything is in the file.
OURS = ("launch", "rollout", "learner", "envpool", "synth")


def log_path(run_dir: Path, name: str) -> Path:
    """Where a process of a run writes."""
    return run_dir / "logs" / f"{name}.log"


def log_to_file(run_dir: Path, name: str, level: str) -> None:
    """Send this process's records to `run_dir/logs/<name>.log` until it ends."""
    root = logging.getLogger()
    root.addHandler(_file_handler(run_dir, name))
    root.setLevel(level)


class _RecordQueue(logging.handlers.QueueHandler):
    """Passes records as they are: the listener is in this process."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


@contextmanager
def driver_logging(run_dir: Path, level: str, *, terminal: logging.Handler) -> Iterator[None]:
    """Send this process's records to `run_dir/logs/launch.log` and ours to `terminal`."""
    terminal.addFilter(lambda record: record.name.partition(".")[0] in OURS)
    file = _file_handler(run_dir, "launch")
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(records, terminal, file)
    handler = _RecordQueue(records)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        listener.stop()
        file.close()


def _file_handler(run_dir: Path, name: str) -> logging.Handler:
    path = log_path(run_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    return handler
