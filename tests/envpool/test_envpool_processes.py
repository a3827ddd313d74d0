"""What a pool starts ends with it; who is who is told by the kernel, and imports get away with nothing."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import gettempdir

import psutil
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import sandbox
from envpool.env import call_text
from envpool.pool import EnvFault, EnvPool, Outcome, Plugged
from envpool.sandbox import Layer
from envpool.task import Task
from tests.envpool.odd_pool import write_pool

# Few sessions, and so few processes for a bomb.
LIMITS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=10.0, max_sessions=8, memory_mb=512)
# The name of a process that is left behind, which no other test uses.
LEFT = f"left-{os.getpid()}"
LEAVE = f"""
import ctypes, os, time
def leave():
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(15, b"{LEFT}", 0, 0, 0)
            time.sleep(3600)
        os._exit(0)
    os.waitpid(pid, 0)
"""

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start(limits=LIMITS) as pool:
        yield pool


async def plug(pool: EnvPool, tmp_path: Path, mischief: str, name: str = "odd") -> Plugged:
    """A pool whose module does this while it is imported."""

    def write() -> Path:
        folder = write_pool(tmp_path / name)
        with (folder / "odd_number.py").open("a") as file:
            file.write(mischief)
        return folder

    return await pool.plug(name, PoolSection(source=str(await asyncio.to_thread(write))))


def task(plugged: Plugged) -> Task:
    key = plugged.key
    return Task(
        pool=key.name, pool_version=key.version, env="odd_number", config={"number": 5}, seed=1
    )


async def looks(pool: EnvPool, plugged: Plugged) -> str:
    async with await pool.open(task(plugged)) as session:
        return (await session.step(call_text("look", {}))).observation


def left() -> list[int]:
    """Processes that were left behind and live."""
    return [one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == LEFT]


async def until_left(*, any_left: bool) -> None:
    async with asyncio.timeout(20):
        while bool(await asyncio.to_thread(left)) != any_left:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_a_session_is_known_by_its_number_outside(pool: EnvPool, tmp_path: Path) -> None:
    plugged = await plug(pool, tmp_path, "")
    async with await pool.open(task(plugged)) as session:
        assert session.pid in pool.session_pids()
        parent = await asyncio.to_thread(lambda: psutil.Process(session.pid).ppid())
        assert parent == pool.pids()["odd"]
        os.kill(session.pid, signal.SIGKILL)  # it goes on in another process
        assert (await session.step(call_text("look", {}))).observation == "1 first"


@pytest.mark.parametrize("end", ["close", "kill"])
async def test_what_a_zygote_started_ends_with_it(pool: EnvPool, tmp_path: Path, end: str) -> None:
    """Also what was forked when it served already, detached, and did not die with its parent."""
    mischief = """
import envpool.zygote as zygote
obey = zygote.Zygote._obey
def leave_and_obey(self):
    leave()
    return obey(self)
zygote.Zygote._obey = leave_and_obey
"""
    plugged = await plug(pool, tmp_path, LEAVE + mischief)
    if not {Layer.PROCESSES, Layer.CGROUP, Layer.PRIVILEGES} & set(plugged.layers):
        pytest.skip(f"nothing ends them here but the pool itself: {plugged.layers}")
    try:
        await looks(pool, plugged)
    except EnvFault:
        pass  # as its zygote forked
    await until_left(any_left=True)
    if end == "kill":
        os.kill(pool.pids()["odd"], signal.SIGKILL)
    else:
        await pool.retire(plugged.key)
    await until_left(any_left=False)


DIED = "its process died"
REFUSED = {
    "leaves a process": (LEAVE + "leave()", "still run"),
    "leaves a child": ("import os, time\nif os.fork() == 0: time.sleep(3600)", "still run"),
    "lets a child serve": ("import os, time\nif os.fork(): time.sleep(3600)", "forked"),
    "forks without end": (
        "import os\nwhile True: os.fork()",
        "forked|BlockingIOError|died|still run",
    ),
    "takes all memory": ("x = []\nwhile True: x.append(bytearray(2**24))", "MemoryError"),
    "starts a thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
        "1 threads",
    ),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "ends its process": ("import os; os._exit(0)", DIED),
    "reads address 0": ("import ctypes; ctypes.string_at(0)", DIED),
    "interrupts": ("raise KeyboardInterrupt", DIED),
    "closes descriptors": ("import os; os.closerange(3, 64)", DIED),
    "runs a program": ("import subprocess; subprocess.run(['/bin/true'])", "PermissionError"),
    "never ends": ("while True: pass", "start_timeout_s"),
    "is deaf and never ends": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "start_timeout_s",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_an_import_is_refused_that(pool: EnvPool, tmp_path: Path, what: str) -> None:
    mischief, text = REFUSED[what]
    honest = await plug(pool, tmp_path, "", "honest")
    if "start_timeout_s" in text:
        await pool.close()
        pool = await EnvPool.start(limits=EnvPoolSection(start_timeout_s=2.0))
        honest = await plug(pool, tmp_path, "", "honest")
    async with pool, await pool.open(task(honest)) as neighbour:
        with pytest.raises(ConfigError, match=text):
            await plug(pool, tmp_path, mischief)
        assert (await neighbour.step(call_text("look", {}))).observation == "1 first"
        assert [one.key for one in pool.served()] == [honest.key]
        await until_left(any_left=False)


HARMLESS = {
    "handles its end": "import atexit, os\natexit.register(lambda: os._exit(7))",
    "blocks signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    "ignores the ends of children": "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "sets an alarm": """
import signal
def ring(*_):
    raise ZeroDivisionError
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.3, 0.001)
""",
    "waits for a child": "import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)",
    "does not wait for a child": "import os\nif os.fork() == 0: os._exit(0)",
    "kills all": "import os\nfor pid in (0, -1):\n    try: os.kill(pid, 0)\n    except OSError: pass",
    "ends what it can": """
import ctypes, os
libc = ctypes.CDLL(None)
assert libc.prctl(1, 0, 0, 0, 0) == -1, "survives its root"
assert libc.prctl(36, 0, 0, 0, 0) == -1, "sends its orphans elsewhere"
""",
}


@pytest.mark.parametrize("what", HARMLESS)
async def test_an_import_gets_away_that(pool: EnvPool, tmp_path: Path, what: str) -> None:
    plugged = await plug(pool, tmp_path, HARMLESS[what])
    for _ in range(40):
        assert await looks(pool, plugged) == "1 first"
    async with await pool.open(task(plugged)) as session:
        os.kill(session.pid, signal.SIGKILL)
        assert (await session.step(call_text("look", {}))).observation == "1 first"


PATCH = """
import envpool.zygote as zygote
from envpool.frames import Born, Exited, NotForked, Outcome, Serving, pack_control
become = zygote.Zygote._become_session
def patched(self, connection, zygote_pid, session_id):
    say = lambda report: self._control.sendall(pack_control(report))
    {}
    become(self, connection, zygote_pid, session_id)
zygote.Zygote._become_session = patched
"""
LIES = {
    "patches fork": "import os\nos.fork = lambda: 0",
    "patches fork to fail": "import os\ndef fork(): raise ZeroDivisionError\nos.fork = fork",
    "says that a session exited": PATCH.format("say(Exited(id=session_id, status=0))"),
    "says that a session was not forked": PATCH.format(
        "say(NotForked(id=session_id, outcome=Outcome.OK, error=''))"
    ),
    "is born twice": PATCH.format("say(Born(id=session_id))"),
    "serves something else": PATCH.format("say(Serving(version='', envs=[]))"),
    "sends garbage": PATCH.format("self._control.sendall(b'garbage')"),
    "sends depth": PATCH.format("self._control.sendall(bytes([0x91]) * 60000)"),
    "is born in the zygote": """
import envpool.zygote as zygote
from envpool.frames import Born, pack_control
fork = zygote.Zygote._fork
def patched(self, session_id, connection):
    self._control.sendall(pack_control(Born(id=session_id)))
    fork(self, session_id, connection)
zygote.Zygote._fork = patched
""",
}


@pytest.mark.parametrize("what", LIES)
async def test_a_zygote_is_not_believed_that(pool: EnvPool, tmp_path: Path, what: str) -> None:
    honest = await plug(pool, tmp_path, "", "honest")
    lying = await plug(pool, tmp_path, LIES[what])
    zygote = pool.pids()["odd"]
    async with await pool.open(task(honest)) as neighbour:
        outcome = Outcome.OK
        while outcome is Outcome.OK and pool.pids()["odd"] == zygote:
            try:
                await looks(pool, lying)
            except EnvFault as fault:
                outcome = fault.outcome
        assert outcome in (Outcome.OK, Outcome.CRASHED)
        assert (await neighbour.step(call_text("look", {}))).observation == "1 first"
        assert await looks(pool, honest) == "1 first"


def parent(pid: int) -> int | None:
    """Of a process that lives."""
    try:
        one = psutil.Process(pid)
        return None if one.status() == psutil.STATUS_ZOMBIE else one.ppid()
    except psutil.NoSuchProcess:
        return None


async def test_a_number_is_that_of_a_process_of_the_pool(pool: EnvPool, tmp_path: Path) -> None:
    """Its zygote may confuse its own sessions, and those alone."""
    honest = await plug(pool, tmp_path, "", "honest")
    confused = await plug(pool, tmp_path, PATCH.format("session_id += session_id % 2"))
    async with await pool.open(task(honest)):
        for _ in range(4):
            before = pool.pids()["odd"]
            try:
                async with await pool.open(task(confused)) as session:
                    zygotes = (before, pool.pids()["odd"])
                    # None: what was confused with another was just killed for it.
                    living = await asyncio.to_thread(parent, session.pid) if session.pid else None
                    assert living in (None, *zygotes)
            except EnvFault:
                continue


async def test_no_pool_reads_the_code_of_another(pool: EnvPool, tmp_path: Path) -> None:
    secret = await plug(pool, tmp_path, "", "secret")
    assert await looks(pool, secret) == "1 first"

    def find() -> list[str]:
        copies = list(Path(gettempdir()).glob("millrace-pools-*/secret-*"))
        return [str(one) for copy in copies for one in (copy, copy.parent)]

    found = await asyncio.to_thread(find)
    assert found
    tries = f"""
for place in {found}:
    try: GOT.append(os.listdir(place))
    except OSError: pass
"""
    mischief = f"import os\nGOT = []\n{tries}\nOddNumber.statement = lambda self: str(GOT)"
    curious = await plug(pool, tmp_path, mischief, "curious")
    async with await pool.open(task(curious)) as session:
        assert session.prompt == "[]"
