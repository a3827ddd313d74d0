"""What keeps a pool's code from this machine and from other pools, in layers.

    root:    a namespace of process ids and a control group around each zygote (`envpool/root.py`)
    zygote:  namespaces -> no privileges -> limits -> Landlock -> seccomp -> import the pool's code
    session: limits -> a Landlock domain of its own -> seccomp without fork and exec -> first message

Every layer is used where the kernel allows it; what is active is reported, and a pool that nobody
trusts is refused where one of the `REQUIRED` is missing. Those need no privilege; a run as root gives its
privileges up. No file can be written, in a private directory neither, so that there is no namespace of
mounts; `/proc` is not readable at all.

What an import leaves running ends with the pool: by the namespace of process ids, or the control group,
or the user id that is the pool's own. Where none of these is to be had, it is only looked for after the
import, by a process in which the pool's code has run by then.
"""

import ctypes
import importlib.util
import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from envpool import landlock, namespaces, seccomp


class Layer(StrEnum):
    """A layer of isolation."""

    PROCESSES = "processes"
    """Can name no process outside, and leaves none behind."""
    CGROUP = "cgroup"
    """Memory and processes of all its sessions together."""
    NAMESPACES = "namespaces"
    """No network devices, queues or host name of this machine."""
    PRIVILEGES = "privileges"
    """A user id that nobody else has, or no capability where it could not read the code."""
    LIMITS = "limits"
    """Memory, CPU time, open files, file size, and core dumps none."""
    LANDLOCK = "landlock"
    """Reads Python and the pool's code, writes nothing, signals nobody outside."""
    SECCOMP = "seccomp"
    """No sockets, no other processes, no tracing, no rarely used parts of the kernel."""


REQUIRED = (Layer.LIMITS, Layer.LANDLOCK, Layer.SECCOMP)


class SessionLimits(NamedTuple):
    """What one session may use."""

    memory_bytes: int
    """Address space, which a little more than the memory in use fits into."""
    cpu_s: int
    max_processes: int
    """Sessions that its zygote may have at once."""


# Of a session: the three standard ones, its socket, and some for libraries.
MAX_FILES = 64
# No file is writable; this bounds what can be written to unnamed memory.
MAX_FILE_BYTES = 2**20
# Own user ids start here, far from those of people and services.
FIRST_UID = 1_879_000_000
NUM_UIDS = 2**22  # no process id is larger
# Threads of all sessions of a pool, in all.
MAX_THREADS = 256
# From this kernel on a user namespace counts its processes alone, for RLIMIT_NPROC.
_COUNTS_SINCE = (5, 14)
# Rounds of killing what a user runs: each ends all there is at that moment.
_KILL_ROUNDS = 10
# Read by libc and Python, and public.
SYSTEM_PATHS = tuple(
    map(
        Path,
        (
            "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone",
            "/etc/mime.types", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random",
        ),
    )
)  # fmt: skip

_PR_CAPBSET_DROP = 24
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(Exception):
    """A layer that is required could not be entered."""


def lacking() -> dict[Layer, str]:
    """The required layers that this machine does not have, and why."""
    missing: dict[Layer, str] = {}
    if not landlock.abi():
        missing[Layer.LANDLOCK] = "the kernel has no Landlock (Linux 5.13), or it is switched off"
    if why := seccomp.why_missing():
        missing[Layer.SECCOMP] = why
    return missing


def prepare() -> None:
    """Do once, in a process whose forks will be shut in, what takes long: find libseccomp, compile."""
    if not lacking():
        seccomp.compiled(may_fork=True, may_signal=True)
        session_filter()


def enter(read: Sequence[Path], limits: SessionLimits, *, pid: int) -> list[Layer]:
    """Shut this zygote in, before it imports anything of its pool; returns the active layers.

    It may read `read` and what Python needs, fork its sessions, and nothing else. `pid` is its process id
    outside. Raises SandboxError where a required layer fails.
    """
    if missing := lacking():
        reasons = "; ".join(f"{layer}: {why}" for layer, why in missing.items())
        raise SandboxError(f"its code cannot be isolated here ({reasons})")
    readable = [*SYSTEM_PATHS, *python_paths(), *read]
    # Compiled while the library can still be found, and inherited by the sessions.
    of_zygote = seccomp.compiled(may_fork=True, may_signal=True)
    session_filter()
    active = [Layer.NAMESPACES] if namespaces.leave() else []
    has_own_count = os.getuid() != 0 and _has_own_users(active)
    if _give_up_privileges(readable, _uid(pid)):
        active.append(Layer.PRIVILEGES)
    try:
        # Already here, as what is imported runs here, too.
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
        _limit(resource.RLIMIT_NOFILE, MAX_FILES)
        _limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
        if has_own_count or os.getuid() >= FIRST_UID:  # nobody else's processes count
            _limit(resource.RLIMIT_NPROC, max_tasks(limits.max_processes))
        landlock.restrict(read=readable, write=[Path(os.devnull)])
        seccomp.load(of_zygote)
    except OSError as error:
        raise SandboxError(f"the sandbox could not be entered: {error}") from error
    return [*active, *REQUIRED]


def enter_session(limits: SessionLimits) -> None:
    """Shut this session in, before it reads its first message. Raises OSError."""
    _limit(resource.RLIMIT_CPU, limits.cpu_s)
    # Threads of sessions leave room for sessions, all of which count.
    if resource.getrlimit(resource.RLIMIT_NPROC)[0] == max_tasks(limits.max_processes):
        _limit(resource.RLIMIT_NPROC, limits.max_processes + MAX_THREADS)
    landlock.leave_domain()
    seccomp.load(session_filter())


def max_tasks(max_processes: int) -> int:
    """Processes and threads of a pool: however many threads its sessions start, all can be forked."""
    return 2 * max_processes + MAX_THREADS


def end_others() -> None:
    """Kill all that descends from this process, which was shut in, if it can reach nobody else."""
    if namespaces.has_own_pids() or landlock.abi() >= landlock.ABI_SCOPES:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_user(pid: int) -> None:
    """Kill what the zygote `pid`, which has ended, left running, if it had a user id of its own."""
    if os.getuid() != 0:
        return
    killer = os.fork()
    if killer == 0:
        try:
            _become(_uid(pid))
            for _ in range(_KILL_ROUNDS):
                os.kill(-1, signal.SIGKILL)  # all that it may, itself not
        except OSError:
            pass  # none is left, or there are no such ids here
        finally:
            os._exit(0)
    try:
        os.waitpid(killer, 0)
    except ChildProcessError:
        pass  # the root lets the kernel reap


def session_filter() -> bytes:
    """The seccomp filter of a session, which refuses signals where Landlock does not."""
    return seccomp.compiled(may_fork=False, may_signal=landlock.abi() >= landlock.ABI_SCOPES)


def python_paths() -> list[Path]:
    """Where the interpreter and installed packages lie, and the packages a zygote is made of."""
    here = Path(__file__).parent
    return [Path(sys.prefix), Path(sys.base_prefix), here, here.parent / "configs"]


def code_of(module_name: str) -> list[Path]:
    """The file or directory of the top-level package of a module, without importing it.

    It also fills the import system's record of the directory it lies in, which then need not be read.
    """
    spec = importlib.util.find_spec(module_name.partition(".")[0])
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(place) for place in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _has_own_users(active: Sequence[Layer]) -> bool:
    """Whether an ordinary user's zygote has a user namespace, whose processes are counted apart."""
    release = tuple(int(word) for word in re.findall(r"\d+", os.uname().release)[:2])
    return release >= _COUNTS_SINCE and (namespaces.has_own_pids() or Layer.NAMESPACES in active)


def _uid(pid: int) -> int:
    """A user id that only the process has which has this number outside, and its children."""
    return FIRST_UID + pid % NUM_UIDS


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _give_up_privileges(paths: Sequence[Path], uid: int) -> bool:
    """Become nobody in particular, or at least lose every capability; False if there were none.

    A user of its own may lack the right to read code that lies in a private directory.
    """
    if os.getuid() == 0 and _can_read_as(uid, paths):
        _become(uid)
        return True
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # not one of the kernel's, or nothing left to drop
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    return _libc.capset(header, (ctypes.c_uint32 * 6)()) == 0 and os.getuid() == 0


def _can_read_as(uid: int, paths: Sequence[Path]) -> bool:
    """Whether a user without privileges reads what exists of these paths; tried as one, for a moment."""
    groups = os.getgroups()
    try:
        os.setgroups([])
        os.setresgid(-1, uid, -1)
        os.setresuid(-1, uid, -1)
        return all(_can_open(path) for path in paths)
    except OSError:
        return False  # such ids do not exist in this container
    finally:
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)
        os.setgroups(groups)


def _can_open(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except FileNotFoundError:
        return True  # nor has it to be read
    except OSError:
        return False
    return True
