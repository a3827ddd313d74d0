"""Landlock: what files, sockets and processes this process may still reach, for good.

No privilege is needed, the children inherit it, and further calls only narrow it. File descriptors that
are open keep their rights. From <linux/landlock.h>; `man 7 landlock`.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1 << 0
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = (1 << bit for bit in range(4))
_MAKE_SOCK = 1 << 9
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# Rights that a version of Landlock knows, by version: what it does not know it cannot refuse.
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NET_TCP = 0b11
_SCOPES = 0b11

# From this version on TCP is refused, and from this one signals to others and abstract sockets.
ABI_NET, ABI_SCOPES = 4, 6

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """The kernel's version of Landlock; 0 where it has none."""
    return max(0, _libc.syscall(_CREATE_RULESET, None, 0, _VERSION))


def restrict(*, read: Iterable[Path] = (), write: Iterable[Path] = ()) -> None:
    """Leave this process and its children only these files, directories with all below them.

    TCP and signals to processes outside are refused as far as the kernel can. Paths that do not exist
    are passed over. Raises OSError where Landlock is missing.
    """
    version = abi()
    handled = (1 << _FS_BITS[min(version, max(_FS_BITS))]) - 1 if version else 0
    attributes = struct.pack("=Q", handled)
    if version >= ABI_NET:
        attributes += struct.pack("=Q", _NET_TCP)
    if version >= ABI_SCOPES:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in read:
            _allow(ruleset, path, (_READ_FILE | _READ_DIR) & handled)
        for path in write:
            _allow(ruleset, path, handled & ~_EXECUTE)
        _restrict_self(ruleset)
    finally:
        os.close(ruleset)


def leave_domain() -> None:
    """A domain of its own for this process: those beside it can be neither traced nor signalled."""
    version = abi()
    # Something must be refused for a domain to be one; making sockets in files is needed by nobody.
    attributes = struct.pack("=Q", _MAKE_SOCK)
    if version >= ABI_SCOPES:
        attributes += struct.pack("=QQ", 0, _SCOPES)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _restrict_self(ruleset)
    finally:
        os.close(ruleset)


def _restrict_self(ruleset: int) -> None:
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    _call(_RESTRICT_SELF, ruleset, 0)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _ON_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return result
