"""Code of a pool that nobody trusts harms its own session alone, and ends as the protocol says."""

import asyncio
import os
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from configs.schema import EnvPoolSection, PoolSection
from envpool import landlock, sandbox
from envpool.pool import EnvFault, EnvPool, Outcome, Session
from envpool.sandbox import Layer
from envpool.task import Task
from tests.envpool.calls import call, task

LIMITS = EnvPoolSection(step_timeout_s=3.0, max_sessions=64, memory_mb=1024)
UNTRUSTED = PoolSection(source="hostile_envs:pool")

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start({"hostile": UNTRUSTED}, limits=LIMITS) as pool:
        yield pool


async def run(session: Session, code: str) -> str:
    return await call(session, "run", code=textwrap.dedent(code))


async def test_layers_are_reported(pool: EnvPool) -> None:
    layers = pool.layers()["hostile"]
    assert {Layer.LIMITS, Layer.LANDLOCK, Layer.SECCOMP} <= set(layers)
    if os.getuid() == 0:
        assert Layer.PRIVILEGES in layers


async def test_processes_have_numbers_of_their_own_where_that_is_allowed(pool: EnvPool) -> None:
    users = [] if os.getuid() == 0 else ["--user"]
    asked = await asyncio.create_subprocess_exec("unshare", *users, "--pid", "--fork", "true")
    is_allowed = await asked.wait() == 0
    assert (Layer.PROCESSES in pool.layers()["hostile"]) == is_allowed
    async with await pool.open(task(pool)) as session:
        numbers = await run(session, "import os; out = os.getpid(), os.getppid()")
        assert (numbers == str((session.pid, pool.pids()["hostile"]))) != is_allowed
        assert numbers.endswith(", 1)") == is_allowed


async def test_a_trusted_pool_has_none() -> None:
    section = PoolSection(source="hostile_envs:pool", trusted=True)
    async with await EnvPool.start({"hostile": section}, limits=LIMITS) as pool:
        assert pool.layers() == {"hostile": []}


# Each tries something and says `refused` where an OSError stopped it.
REFUSED = {
    "read a system file": "open('/etc/passwd').read()",
    "read the process list": "__import__('os').listdir('/proc')",
    "read its parent's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "read a file of this project": f"open({str(Path(__file__))!r}).read()",
    "list a home": "os.listdir(os.path.expanduser('~'))",
    "list the root": "os.listdir('/')",
    "write to /tmp": "open('/tmp/millrace-was-here', 'w')",
    "write to shared memory": "open('/dev/shm/millrace-was-here', 'w')",
    "write where it is": "open('millrace-was-here', 'w')",
    "write to its own code": "open(__import__('envpool.worker').worker.__file__, 'a')",
    "remove a file": f"os.unlink({str(Path(__file__))!r})",
    "change a mode": f"os.chmod({str(Path(__file__))!r}, 0o777)",
    "change a time": f"os.utime({str(Path(__file__))!r})",
    "make memory that is no address space": "os.memfd_create('x')",
    "open an internet socket": "socket.socket()",
    "open a datagram socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "open a unix socket": "socket.socket(socket.AF_UNIX)",
    "open a raw packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "read init's environment": "open('/proc/1/environ', 'rb').read()",
    "read its own memory map": "open('/proc/self/maps').read()",
    "open an abstract socket": "check(libc.socket(1, 1, 0))",
    "open a netlink socket": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "use io_uring": "check(libc.syscall(425, 1, ctypes.create_string_buffer(128)))",
    "take a descriptor of its parent": "check(libc.syscall(438, 0, 0, 0))",
    "name a process for good": "os.pidfd_open(os.getppid())",
    "fork": "os.fork()",
    "fork by the system call": "check(libc.syscall(56, 17, 0, 0, 0, 0))",
    "fork into a namespace": "check(libc.syscall(56, 0x20000011, 0, 0, 0, 0))",
    "fork without libc's knowledge": "check(libc.vfork())",
    "be traced": "check(libc.ptrace(0, 0, 0, 0))",
    "start a program": "subprocess.run(['/bin/true'])",
    "become another program": "os.execv('/bin/true', ['true'])",
    "end its parent": "os.kill(os.getppid(), 9)",
    "end init": "os.kill(1, 9)",
    "become root": "os.setuid(0)",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    "limit its parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
    "trace its parent": "check(libc.ptrace(16, os.getppid(), 0, 0))",
    "read its parent's memory": "check(libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0))",
    "mount": "check(libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0))",
    "enter a user namespace": "check(libc.unshare(0x10000000))",
    "outlive its zygote": "check(libc.prctl(1, 0))",
    "make shared memory": "check(libc.shmget(0, 4096, 0o1600))",
    "load a kernel program": "check(libc.syscall(321, 0, 0, 0))",
}
PRELUDE = """
import ctypes, os, resource, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
try:
    {attempt}
    out = "done"
except (OSError, ValueError):
    out = "refused"
"""


@pytest.mark.parametrize("what", REFUSED)
async def test_is_refused(pool: EnvPool, what: str) -> None:
    async with await pool.open(task(pool)) as session:
        assert await run(session, PRELUDE.format(attempt=REFUSED[what])) == "refused"
        assert await call(session, "count") == "1"


async def test_what_is_needed_works(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as session:
        code = """
        import decimal, fractions, json, statistics, threading, zoneinfo, socket, random
        import numpy
        found = []
        thread = threading.Thread(target=lambda: found.append(numpy.arange(3).sum()))
        thread.start(); thread.join()
        socket.socketpair()
        out = f"{found[0]} {decimal.Decimal('1.5') * 2} {random.SystemRandom().random() < 1}"
        """
        assert await run(session, code) == "3 3.0 True"


async def test_sessions_cannot_signal_each_other(pool: EnvPool) -> None:
    async with await pool.open(task(pool)) as victim, await pool.open(task(pool)) as session:
        attempt = f"os.kill({victim.pid}, 9)"
        assert await run(session, PRELUDE.format(attempt=attempt)) == "refused"
        await run(session, "import os; os.kill(-1, 9)")  # says yes, and reaches nobody
        trace = f"check(libc.ptrace(16, {victim.pid}, 0, 0))"
        assert await run(session, PRELUDE.format(attempt=trace)) == "refused"
        assert await call(victim, "count") == "1"


async def outcome_of(session: Session, code: str) -> Outcome:
    """How a session ended that does this time and again, with other calls between."""
    try:
        for _ in range(3):
            await run(session, code)
            await call(session, "count")
    except EnvFault as error:
        return error.outcome
    return Outcome.OK


DEADLY = {
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(2**24))", {Outcome.OOM}),
    "gigabyte of text": ("out = 'x' * 2**31", {Outcome.OOM, Outcome.ENV_ERROR}),
    "too long a text": ("out = 'x' * 2**25", {Outcome.ENV_ERROR}),
    "busy loop": ("while True: pass", {Outcome.TIMEOUT}),
    "sleep": ("import time; time.sleep(3600)", {Outcome.TIMEOUT}),
    "exit": ("import os; os._exit(0)", {Outcome.CRASHED}),
    "segfault": ("import ctypes; ctypes.string_at(0)", {Outcome.CRASHED}),
    "endless recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1) + 1\nf(0)",
        {Outcome.CRASHED, Outcome.OOM, Outcome.ENV_ERROR, Outcome.TIMEOUT},
    ),
    "fork bomb": ("import os\nwhile True: os.fork()", {Outcome.ENV_ERROR, Outcome.OK}),
    "blocks signals": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        {Outcome.TIMEOUT},
    ),
    "alarms": (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, .001, .001)\nwhile True: pass",
        {Outcome.TIMEOUT},
    ),
    "an alarm that kills": (
        "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_DFL)\nsignal.alarm(1)\nsignal.pause()",
        {Outcome.CRASHED},
    ),
    "interrupt": ("raise KeyboardInterrupt", {Outcome.CRASHED}),
    "closed descriptors": ("import os; os.closerange(0, 64)", {Outcome.CRASHED}),
    "lowered limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**20, 2**20))\nout = 'x' * 2**22",
        {Outcome.OOM, Outcome.ENV_ERROR, Outcome.CRASHED},
    ),
    "patched worker": (
        "import envpool.worker as w, envpool.frames as f\n"
        "w.Session = w.serve = w.read_frames = f._encoder = None",
        {Outcome.CRASHED},
    ),
    "patched encoder": (
        "import envpool.worker as w\nw.pack = lambda reply: b'junk'",
        {Outcome.ENV_ERROR},
    ),
    "patched sockets": (
        "import socket\nsocket.socket = socket.socketpair = None",
        {Outcome.OK},
    ),
    "all objects emptied": (
        "import gc\nfor one in gc.get_objects():\n"
        "    if isinstance(one, (dict, list, set)):\n        one.clear()",
        {Outcome.OK, Outcome.CRASHED, Outcome.ENV_ERROR, Outcome.TIMEOUT},
    ),
    "deaf to signals": (
        "import signal\nfor n in range(1, 32):\n"
        "    if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        {Outcome.TIMEOUT},
    ),
    "patched protocol": (
        "import envpool.worker as w\nw.Session.answer = lambda *a: b'\\0\\0\\0\\4oops'",
        {Outcome.ENV_ERROR},
    ),
    "frame of another request": (
        "import os, envpool.frames as f\nframe = f.pack(f.Stepped(id=99, observation='', reward=1.0, "
        "terminated=True, truncated=False, is_bad_call=False))\n"
        "for fd in range(3, 64):\n    try: os.write(fd, frame)\n    except OSError: pass",
        {Outcome.ENV_ERROR},
    ),
    "reward that is no number": (
        "type(env).step = lambda *a: ('', float('nan'), True, False, {'is_bad_call': False})",
        {Outcome.GRADER_ERROR},
    ),
    "object instead of text": (
        "class Odd(str):\n    def __reduce__(self): return print, ('surprise',)\n"
        "type(env).step = lambda *a: (Odd('x'), object(), True, False, {})",
        {Outcome.ENV_ERROR},
    ),
}


@pytest.mark.parametrize("what", DEADLY)
async def test_touches_its_own_session_alone(pool: EnvPool, what: str) -> None:
    code, outcomes = DEADLY[what]
    async with await pool.open(task(pool)) as neighbour, await pool.open(task(pool)) as session:
        assert await call(neighbour, "count") == "1"
        dying = asyncio.create_task(outcome_of(session, code))
        assert await call(neighbour, "count") == "2"
        assert await dying in outcomes
        assert await call(neighbour, "count") == "3"
    async with await pool.open(task(pool)) as session:
        assert await call(session, "count") == "1"


async def test_threads_are_bounded(pool: EnvPool) -> None:
    code = """
    import threading, time
    out = 0
    try:
        while True:
            threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
            out += 1
    except RuntimeError:
        pass
    """
    async with await pool.open(task(pool)) as session:
        assert int(await run(session, code)) < 1000


async def test_cpu_time_is_bounded() -> None:
    limits = EnvPoolSection(step_timeout_s=20.0, cpu_s=1)
    async with (
        await EnvPool.start({"hostile": UNTRUSTED}, limits=limits) as pool,
        await pool.open(task(pool)) as session,
    ):
        assert await outcome_of(session, "while True: pass") is Outcome.CRASHED


async def test_mischief_at_import_gets_nothing() -> None:
    section = PoolSection(source="mischief_source:pool")
    async with await EnvPool.start({"m": section}, limits=LIMITS) as pool:
        mischief = Task(
            pool="m", pool_version=pool.versions()["m"], env="mischief", config={}, seed=0
        )
        async with await pool.open(mischief) as session:
            assert session.prompt == "nothing"


def test_what_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert "Landlock" in sandbox.lacking()[Layer.LANDLOCK]
