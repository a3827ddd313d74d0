"""Control groups: what all sessions of a pool use together, bounded where groups may be made.

    version 2: <delegated group>/millrace-<root pid>-<n>
    version 1: <hierarchy of memory>/<own group>/millrace-<root pid>-<n>, the same in that of pids

The root makes a group before it forks a zygote, puts the zygote in, and removes the group when the zygote
is gone. A root that was killed leaves its groups behind, empty; the next one removes them.
"""

import errno
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PREFIX = "millrace-"
CONTROLLERS = ("memory", "pids")
# Processes that were killed leave their group a little later than they end.
_TRIES, _PAUSE_S = 20, 0.005


class Place(NamedTuple):
    """A directory in which groups are made."""

    directory: Path
    top: Path
    """The mount point above it."""
    version: int
    controllers: tuple[str, ...]


class Group:
    """The group of one zygote and its sessions."""

    def __init__(self, directories: list[Path]) -> None:
        self.directories = directories

    @classmethod
    def make(
        cls, places: list[Place], number: int, *, memory_bytes: int, max_tasks: int
    ) -> "Group | None":
        """A group with these limits; None where it cannot be made. `memory_bytes` 0: half of all."""
        group = cls([place.directory / f"{PREFIX}{os.getpid()}-{number}" for place in places])
        try:
            for place, directory in zip(places, group.directories, strict=True):
                directory.mkdir()
                if "memory" in place.controllers:
                    _limit_memory(directory, memory_bytes or memory_here(place) // 2, place.version)
                if "pids" in place.controllers:
                    (directory / "pids.max").write_text(str(max_tasks))
        except OSError:
            group.end()
            return None
        return group if places else None

    def add(self, pid: int) -> bool:
        """Put a process in; False where that is not allowed."""
        try:
            for directory in self.directories:
                (directory / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def end(self) -> bool:
        """Kill whatever is left in it and remove it; False if that takes longer."""
        for _ in range(_TRIES):
            left = [directory for directory in self.directories if not _remove(directory)]
            if not left:
                return True
            for directory in left:
                _kill(directory)
            time.sleep(_PAUSE_S)
        return False


def find(proc: Path = Path("/proc/self")) -> list[Place]:
    """Where groups with all controllers may be made; nothing if nowhere. `proc`: of this process."""
    mounts = dict(_mounts(proc / "mountinfo"))
    own = dict(_own(proc / "cgroup"))
    if "" in own and "" in mounts:
        directory = _below(mounts[""], own[""])
        for candidate in (directory, directory.parent):
            if _delegates(candidate, is_own=candidate == directory):
                return [Place(candidate, mounts[""][1], 2, CONTROLLERS)]
    places: dict[Path, Place] = {}
    for controller in CONTROLLERS:
        if controller not in own or controller not in mounts:
            return []
        directory = _below(mounts[controller], own[controller])
        if not os.access(directory, os.W_OK):
            return []
        known = places[directory].controllers if directory in places else ()
        places[directory] = Place(directory, mounts[controller][1], 1, (*known, controller))
    return list(places.values())


def sweep(places: list[Place]) -> None:
    """Remove the groups of roots that are dead."""
    for place in places:
        for directory in place.directory.glob(f"{PREFIX}*-*"):
            pid = directory.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                _remove(directory)  # fails for one in use, whoever's it is


def memory_here(place: Place) -> int:
    """Bytes of memory of this machine, or what is left of it to the groups above."""
    name = "memory.max" if place.version == 2 else "memory.limit_in_bytes"
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for directory in (place.directory, *place.directory.parents):
        if not directory.is_relative_to(place.top):
            break
        try:
            found.append(int((directory / name).read_text()))
        except (OSError, ValueError):
            continue  # the top has no limit in version 2, and `max` is none
    return min(found)


def _mounts(file: Path) -> Iterator[tuple[str, tuple[str, Path]]]:
    """By controller, "" being version 2: which directory of its hierarchy is mounted, and where."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup2":
            yield "", (root, Path(point))
        elif kind == "cgroup":
            for option in options.split(","):
                yield option, (root, Path(point))


def _own(file: Path) -> Iterator[tuple[str, str]]:
    """By controller, "" being version 2: the group of this process."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", maxsplit=2)
        for controller in controllers.split(","):
            yield controller, path


def _below(mount: tuple[str, Path], path: str) -> Path:
    """The directory of a group; that of the mount where the group lies outside of what is mounted."""
    root, point = mount
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    directory = point / path.lstrip("/")
    return directory if directory.is_dir() else point


def _delegates(directory: Path, *, is_own: bool) -> bool:
    """Whether groups with limits may be made here: in one's own group, or one handed over for it.

    A group with processes in it, other than the first of all, cannot pass controllers on; so what hands
    groups over puts its processes one below (systemd: Delegate=yes, DelegateSubgroup=).
    """
    try:
        if not is_own and os.getxattr(directory, "user.delegate") != b"1":
            return False
        if not set(CONTROLLERS) <= set((directory / "cgroup.controllers").read_text().split()):
            return False
        passed_on = directory / "cgroup.subtree_control"
        if not set(CONTROLLERS) <= set(passed_on.read_text().split()):
            passed_on.write_text(" ".join(f"+{name}" for name in CONTROLLERS))
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _limit_memory(directory: Path, num_bytes: int, version: int) -> None:
    """Bound memory, and swap with it: a pool that swaps slows down everybody."""
    if version == 1:
        (directory / "memory.limit_in_bytes").write_text(str(num_bytes))
        swap, most = directory / "memory.memsw.limit_in_bytes", num_bytes  # of both together
    else:
        (directory / "memory.max").write_text(str(num_bytes))
        swap, most = directory / "memory.swap.max", 0
    if swap.exists():  # not where the kernel counts no swap
        swap.write_text(str(most))


def _remove(directory: Path) -> bool:
    """Remove a group if nothing is in it; True if it is gone."""
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        return error.errno not in (errno.EBUSY, errno.ENOTEMPTY)  # it will not help to try again
    return True


def _kill(directory: Path) -> None:
    """Kill what is in a group."""
    try:
        pids = [int(line) for line in (directory / "cgroup.procs").read_text().split()]
    except OSError:
        return
    for pid in filter(None, pids):  # 0 is one that cannot be named from here
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
