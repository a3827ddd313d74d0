"""Which processes a run started: `run_dir/pids.json`, and how they are ended."""

import os
from pathlib import Path

import msgspec
import psutil

from rollout.types import FORMAT


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a run. The start time tells it from a later one with the same pid."""

    name: str
    pid: int
    started: float
    """Seconds since the epoch, as the system reports it."""


class PidFile(msgspec.Struct, frozen=True, kw_only=True):
    """`run_dir/pids.json`."""

    format: int = FORMAT
    processes: list[Process]


def describe(name: str, pid: int | None = None) -> Process:
    """A process by its pid, this one by default."""
    process = psutil.Process(pid or os.getpid())
    return Process(name=name, pid=process.pid, started=process.create_time())


def descendants(name: str) -> list[Process]:
    """Every process below this one, whoever started it."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            found.append(
                Process(name=f"{name}:{child.name()}", pid=child.pid, started=child.create_time())
            )
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return found


def write_pids(run_dir: Path, processes: list[Process]) -> None:
    """Write `pids.json`, each pid once, under the first name given for it."""
    unique = {process.pid: process for process in reversed(processes)}
    record = PidFile(processes=list(unique.values()))
    path = run_dir / "pids.json"
    partial = path.with_suffix(".tmp")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    partial.replace(path)


def read_pids(run_dir: Path) -> list[Process]:
    """The processes recorded by a run."""
    data = (run_dir / "pids.json").read_bytes()
    return msgspec.json.decode(data, type=PidFile).processes


def is_alive(process: Process) -> bool:
    """Whether exactly this process still runs (a zombie does not)."""
    try:
        found = psutil.Process(process.pid)
        is_same = abs(found.create_time() - process.started) < 1.0
        return is_same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(recorded: list[Process], *, within_s: float) -> list[str]:
    """Wait for these to end, then SIGKILL what is left; blocks. Returns the killed ones' names."""
    alive = [process for process in recorded if is_alive(process)]
    names = {process.pid: process.name for process in alive}
    _, left = psutil.wait_procs(_open(alive), timeout=within_s)
    for process in left:
        try:
            process.kill()  # psutil checks the start time, so that a reused pid is not hit
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=1.0)
    return [names[process.pid] for process in left]


def _open(alive: list[Process]) -> list[psutil.Process]:
    opened = []
    for process in alive:
        try:
            opened.append(psutil.Process(process.pid))
        except psutil.NoSuchProcess:
            continue
    return opened
