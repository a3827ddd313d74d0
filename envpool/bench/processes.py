"""What processes cost: CPU time of a whole process tree, private memory of a process.

CPU time is the scheduler's own count in nanoseconds where it keeps one: the clock ticks of
`/proc/<pid>/stat` are too coarse for two thousand processes that work a millisecond each.
"""

import os
import resource
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median

PROC = Path("/proc")
# Processes whose memory is looked at: a look costs a millisecond, and they are forks of one.
MAX_LOOKS = 16
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def tree_cpu_s() -> float:
    """CPU seconds of this process and of all that descend from it, those already reaped included."""
    own = sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return own + sum(map(_cpu_s, descendants(os.getpid())))


def descendants(pid: int) -> list[int]:
    """Process ids of the children of `pid`, of theirs, and so on."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat:
                children[int(stat[1])].append(int(entry.name))
    found, unseen = [], [pid]
    while unseen:
        unseen += (below := children[unseen.pop()])
        found += below
    return found


def private_mib(pids: Iterable[int]) -> float:
    """Memory that a process shares with no other, the median of some of `pids`; 0.0 without any."""
    sizes = []
    for pid in list(pids)[:MAX_LOOKS]:
        lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        kib = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        sizes.append(kib / 1024)
    return median(sizes) if sizes else 0.0


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/<pid>/stat` after the name; none for a process that has ended."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu_s(pid: int) -> float:
    """CPU seconds of a living process and of the children it has reaped."""
    stat = _stat(pid)
    if not stat:
        return 0.0
    own, reaped = sum(map(int, stat[11:13])), sum(map(int, stat[13:15]))
    try:
        threads = list((PROC / str(pid) / "task").iterdir())
        exact = sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9
    except (FileNotFoundError, ProcessLookupError):
        exact = 0.0  # a kernel without this count, or a thread that just ended
    return (exact or own / _TICKS_PER_S) + reaped / _TICKS_PER_S
