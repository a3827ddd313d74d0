"""What keeps a pool's code from this machine and from other pools, in layers.

    zygote:  namespaces -> no privileges -> limits -> Landlock -> seccomp -> import the pool's code
    session: limits -> a Landlock domain of its own -> seccomp without fork and exec -> first message

Every layer is used where the kernel allows it; what is active is reported, and a pool that nobody
trusts is refused where one of the `REQUIRED` is missing. All of it needs no privilege, though a run
as root gives its privileges up.
"""

import ctypes
import importlib.util
import os
import resource
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from envpool import landlock, seccomp


class Layer(StrEnum):
    """A layer of isolation."""

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


# Of a session: the three standard ones, its socket, and some for libraries.
MAX_FILES = 64
# No file is writable; this bounds what can be written to unnamed memory.
MAX_FILE_BYTES = 2**20
# Own user ids start here, far from those of people and services.
FIRST_UID = 1_879_000_000
NUM_UIDS = 1_000_000
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

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_NEWUTS = (
    0x10000000,
    0x40000000,
    0x08000000,
    0x04000000,
)
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


def enter(read: Sequence[Path], limits: SessionLimits, *, max_processes: int) -> list[Layer]:
    """Shut this zygote in, before it imports anything of its pool; returns the active layers.

    It may read `read` and what Python needs, fork `max_processes` sessions, and nothing else. Raises
    SandboxError where a required layer fails.
    """
    if missing := lacking():
        reasons = "; ".join(f"{layer}: {why}" for layer, why in missing.items())
        raise SandboxError(f"its code cannot be isolated here ({reasons})")
    readable = [*SYSTEM_PATHS, *python_paths(), *read]
    # Compiled while the library can still be found, and inherited by the sessions.
    of_zygote = seccomp.compiled(may_fork=True, may_signal=True)
    session_filter()
    active = [Layer.NAMESPACES] if _leave_namespaces() else []
    if _give_up_privileges(readable):
        active.append(Layer.PRIVILEGES)
    try:
        # Already here, as what is imported runs here, too.
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
        _limit(resource.RLIMIT_NOFILE, MAX_FILES)
        _limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
        if os.getuid() >= FIRST_UID:  # its own: nobody else's processes count
            _limit(resource.RLIMIT_NPROC, max_processes)
        landlock.restrict(read=readable, write=[Path(os.devnull)])
        seccomp.load(of_zygote)
    except OSError as error:
        raise SandboxError(f"the sandbox could not be entered: {error}") from error
    return [*active, *REQUIRED]


def enter_session(limits: SessionLimits) -> None:
    """Shut this session in, before it reads its first message. Raises OSError."""
    _limit(resource.RLIMIT_CPU, limits.cpu_s)
    landlock.leave_domain()
    seccomp.load(session_filter())


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


def _leave_namespaces() -> bool:
    """Into namespaces without network devices; False where the system does not allow it."""
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    if uid != 0:
        flags |= _CLONE_NEWUSER
    if _libc.unshare(flags) != 0:
        return False
    if uid != 0:
        # Without a map the ids would be those of nobody, who owns nothing. A refusal changes little.
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            try:
                Path(f"/proc/self/{name}").write_text(line)
            except OSError:
                return True
    return True


def _give_up_privileges(paths: Sequence[Path]) -> bool:
    """Become nobody in particular, or at least lose every capability; False if there were none.

    A user of its own may lack the right to read code that lies in a private directory.
    """
    if os.getuid() == 0:
        uid = FIRST_UID + os.getpid() % NUM_UIDS
        if _can_read_as(uid, paths):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return True
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # not one of the kernel's, or nothing left to drop
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    return _libc.capset(header, (ctypes.c_uint32 * 6)()) == 0 and os.getuid() == 0


def _can_read_as(uid: int, paths: Sequence[Path]) -> bool:
    """Whether a user without privileges reads what exists of these paths; tried by a process of theirs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            status = int(not all(os.access(path, os.R_OK) for path in paths if path.exists()))
        except OSError:
            pass  # such ids do not exist in this container
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
