"""seccomp: system calls that code of a pool never needs, refused by the kernel, for good.

A filter is compiled once, by libseccomp, and loaded by each process with one system call. What is refused
fails with EPERM, so that an environment gets an exception instead of a signal. From <linux/seccomp.h>.
"""

import ctypes
import errno
import os
import signal
from functools import cache

# Ways out of the sandbox, into other processes and into rarely used parts of the kernel.
DENIED = (
    # networks
    "socket", "connect", "bind", "listen", "accept", "accept4",
    # other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "pidfd_open",
    "pidfd_send_signal", "process_madvise", "migrate_pages", "move_pages",
    "setpriority", "sched_setscheduler", "sched_setattr", "sched_setparam", "sched_setaffinity",
    "ioprio_set", "process_mrelease",
    # what files are, which Landlock does not guard; a run as root owns many
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime",
    "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
    "removexattr", "lremovexattr", "fremovexattr", "removexattrat", "truncate", "sync", "syncfs",
    # namespaces, mounts, identity
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "setuid", "setgid", "setreuid",
    "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capset",
    # kernel
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "syslog", "quotactl", "quotactl_fd",
    "open_by_handle_at", "name_to_handle_at", "fanotify_init", "fanotify_mark", "lookup_dcookie",
    "personality", "iopl", "ioperm", "modify_ldt", "vm86", "vm86old", "settimeofday", "clock_settime",
    "clock_adjtime", "adjtimex", "sethostname", "setdomainname", "vhangup", "mknod", "mknodat",
    "memfd_create", "memfd_secret", "nfsservctl", "uselib", "ustat", "sysfs",
    # shared memory and queues that would outlive the process
    "shmget", "shmat", "shmctl", "semget", "semop", "semctl", "msgget", "msgsnd", "msgctl", "mq_open",
    # other programs
    "execve", "execveat",
)  # fmt: skip
# Signals to others; refused here where Landlock cannot tell whose process it is.
SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
# A new process is one made without this.
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every namespace
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def why_missing() -> str:
    """What is lacking here; empty when filters can be made and loaded."""
    try:
        compiled(may_fork=False, may_signal=False)
    except (ImportError, RuntimeError, OSError) as error:
        return f"libseccomp: {error}"
    # Without a program this fails with EFAULT where filters exist, with EINVAL where they do not.
    _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    if ctypes.get_errno() != errno.EFAULT:
        return "the kernel has no seccomp filters"
    return ""


@cache
def compiled(*, may_fork: bool, may_signal: bool) -> bytes:
    """A filter as the kernel takes it. Raises ImportError or RuntimeError without libseccomp.

    `may_fork`: for a process that forks others itself.
    """
    import pyseccomp as seccomp  # its import looks for the library and fails without it

    refuse = seccomp.ERRNO(errno.EPERM)
    made = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in (*DENIED, *(() if may_signal else SIGNALS)):
        try:
            made.add_rule(refuse, name)
        except (OSError, ValueError, RuntimeError):
            continue  # this architecture, or this library, does not know it
    # Limits of others; its own it may read, and lower.
    made.add_rule(refuse, "prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    # Orphans stay where they are looked for.
    made.add_rule(refuse, "prctl", seccomp.Arg(0, seccomp.EQ, _PR_SET_CHILD_SUBREAPER))
    # Its flags lie in memory, where a filter cannot look; without it, libc uses `clone`.
    made.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    if may_fork:
        for bit in range(32):
            if _CLONE_NEW >> bit & 1:
                flag = seccomp.Arg(0, seccomp.MASKED_EQ, 1 << bit, 1 << bit)
                made.add_rule(refuse, "clone", flag)
        # Its sessions arm the signal that ends them with it, as it did; nobody disarms it.
        disarming = seccomp.Arg(1, seccomp.NE, signal.SIGKILL)
        made.add_rule(refuse, "prctl", seccomp.Arg(0, seccomp.EQ, _PR_SET_PDEATHSIG), disarming)
    else:
        made.add_rule(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0))
        for name in ("fork", "vfork"):
            try:
                made.add_rule(refuse, name)
            except (OSError, ValueError, RuntimeError):
                continue
        # The signal that ends it with its zygote stays.
        made.add_rule(refuse, "prctl", seccomp.Arg(0, seccomp.EQ, _PR_SET_PDEATHSIG))
    # Through a pipe, which is made where no file can be; a filter is a kilobyte or two.
    reader, writer = os.pipe()
    with open(reader, "rb") as source:
        with open(writer, "wb") as sink:
            made.export_bpf(sink)
        return source.read()


def load(program: bytes) -> None:
    """Put this process, of one thread, under a compiled filter. Raises OSError."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    packed = _Program(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(packed), 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp: {os.strerror(error)}")
