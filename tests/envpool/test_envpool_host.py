"""Sessions on hosts: as if the pool were here, and nothing lost when a host dies."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool.env import call_text
from envpool.host import Host
from envpool.link import (
    Act,
    Acted,
    Done,
    Fault,
    Hello,
    Link,
    Open,
    Opened,
    PlugIn,
    Refusal,
    decode_answer,
)
from envpool.pool import EnvFault, EnvPool, Outcome
from envpool.remote import Hosts
from envpool.task import Task
from tests.envpool.calls import call
from tests.envpool.odd_pool import write_pool

LIMITS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=20.0, spares=0)
HOSTILE = PoolSection(source="hostile_envs:pool", trusted=True)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start(limits=LIMITS) as pool:
        yield pool


@pytest.fixture
async def host(pool: EnvPool, tmp_path: Path) -> AsyncIterator[str]:
    """A host in this process, and where it listens."""
    async with Host(pool) as host:
        yield await host.listen(str(tmp_path / "host.sock"))


@pytest.fixture
async def hosts(host: str) -> AsyncIterator[Hosts]:
    async with await Hosts.start([host], {"hostile": HOSTILE}, limits=LIMITS) as hosts:
        yield hosts


def task(hosts: Hosts, seed: int = 3, **config: object) -> Task:
    version = hosts.versions()["hostile"]
    return Task(pool="hostile", pool_version=version, env="hostile", config=config, seed=seed)


async def all_left(pool: EnvPool) -> None:
    """Wait until nothing of a session is left; nobody tells."""
    async with asyncio.timeout(20):
        while pool.session_pids() or any(served.num_sessions for served in pool._served.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_session_on_a_host_is_as_one_here(hosts: Hosts, pool: EnvPool) -> None:
    async with hosts.session(task(hosts)) as session, pool.session(task(hosts)) as here:
        assert (session.prompt, session.tools) == (here.prompt, here.tools)
        assert session.pid in pool.session_pids()
        assert await call(session, "count") == await call(here, "count") == "1"
        assert (await session.step("nonsense")).is_bad_call
        result = await session.step(call_text("done", {"answer": 1}))
        assert (result.reward, result.terminated) == (1.0, True)


async def test_it_survives_its_process(hosts: Hosts) -> None:
    async with hosts.session(task(hosts)) as session:
        assert await call(session, "count") == "1"
        os.kill(session.pid, signal.SIGKILL)
        assert await call(session, "count") == "2"
        # The first step that ends its process is a wrong call, the second a fault.
        assert (await session.step(call_text("leave", {"status": 3}))).is_bad_call
        assert await call(session, "count") == "3"
        with pytest.raises(EnvFault, match="exited with status 3") as caught:
            await call(session, "leave", status=3)
        assert caught.value.outcome is Outcome.CRASHED


async def test_faults_keep_their_kind(hosts: Hosts) -> None:
    async with hosts.session(task(hosts)) as session:
        with pytest.raises(EnvFault, match="broken environment") as caught:
            await call(session, "fail")
        assert caught.value.outcome is Outcome.ENV_ERROR
    version = hosts.versions()["hostile"]
    task_of_none = Task(pool="hostile", pool_version=version, env="x", config={}, seed=0)
    with pytest.raises(EnvFault, match="no env 'x'"):
        await hosts.open(task_of_none)


async def test_closing_frees_the_room(host: str, pool: EnvPool) -> None:
    async with await Hosts.start([host], {"hostile": HOSTILE}, limits=LIMITS) as hosts:
        sessions = [await hosts.open(task(hosts)) for _ in range(3)]
        assert len(pool.session_pids()) == 3
        await sessions[0].close()
        assert len(pool.session_pids()) == 2
    await all_left(pool)  # those of a client that left without a word are closed


async def test_a_cancelled_step_ends_its_process(hosts: Hosts, pool: EnvPool) -> None:
    session = await hosts.open(task(hosts))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await call(session, "hang")
    await session.close()
    async with asyncio.timeout(20):
        while pool.session_pids():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_an_open_that_is_cancelled_leaves_no_session(
    hosts: Hosts, pool: EnvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = hosts._hosts[0]._link
    assert connection is not None
    heard = connection._heard

    def heard_and_cancelled(link: Link, answer: Any) -> None:
        heard(link, answer)
        if isinstance(answer, Opened):
            late.cancel()

    early = asyncio.create_task(hosts.open(task(hosts)))
    async with asyncio.timeout(20):
        while not pool.session_pids():  # noqa: ASYNC110 - it is on its way
            await asyncio.sleep(0)
    early.cancel()
    await asyncio.wait([early])
    await all_left(pool)
    monkeypatch.setattr(connection, "_heard", heard_and_cancelled)
    late = asyncio.create_task(hosts.open(task(hosts)))
    await asyncio.wait([late])
    assert early.cancelled() and late.cancelled()
    await all_left(pool)


async def test_who_is_cancelled_while_it_connects_leaves_no_half_connected_host(
    hosts: Hosts, pool: EnvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, here = hosts._hosts[0], task(hosts)
    ask = host.ask

    async def ask_and_be_cancelled(question: Any, *rest: Any) -> Any:
        if isinstance(question, PlugIn):
            late.cancel()
        return await ask(question, *rest)

    host.close()
    await pool.retire(here.pool_key)  # as if it had been started again
    monkeypatch.setattr(host, "ask", ask_and_be_cancelled)
    late = asyncio.create_task(hosts.open(here))
    await asyncio.wait([late])
    assert late.cancelled()
    monkeypatch.undo()
    async with hosts.session(here) as session:
        assert await call(session, "count") == "1"


async def test_pools_come_and_go_through_a_host(
    hosts: Hosts, pool: EnvPool, tmp_path: Path
) -> None:
    folder = await asyncio.to_thread(write_pool, tmp_path / "odd")
    plugged = await hosts.plug("odd", PoolSection(source=str(folder)))
    assert plugged in pool.served()
    configs = await hosts.draw(plugged.key, "odd_number", level=0, seed=0, count=3)
    assert len(configs) == 3
    await hosts.try_env(plugged.key, "odd_number", level=0)
    odd = Task(
        pool="odd", pool_version=plugged.key.version, env="odd_number", config=configs[0], seed=0
    )
    async with hosts.session(odd) as session:
        await hosts.retire(plugged.key)
        assert await call(session, "look") == "1 first"
        with pytest.raises(EnvFault, match="removed or replaced"):
            await hosts.open(odd)
    async with asyncio.timeout(20):
        while plugged in pool.served():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    broken = await asyncio.to_thread(write_pool, tmp_path / "broken", "{nonsuch}")
    plugged = await hosts.plug("broken", PoolSection(source=str(broken)))
    await asyncio.to_thread((broken / "bad.py").write_text, "1/0")
    with pytest.raises(ConfigError, match=r"bad.py:1: ZeroDivisionError"):
        await hosts.plug("broken", PoolSection(source=str(broken)))


async def test_where_no_host_is_the_reason_is_said(tmp_path: Path) -> None:
    limits = EnvPoolSection(start_timeout_s=0.3)
    with pytest.raises(ConfigError, match=r"no host .* can be reached: .*gone.sock"):
        await Hosts.start([str(tmp_path / "gone.sock")], {"hostile": HOSTILE}, limits=limits)


class Raw:
    """A client that says exactly what it is told."""

    def __init__(self) -> None:
        self.link = Link(decode_answer, heard=self._heard, ended=lambda _: self.ended.set())
        self.ended = asyncio.Event()
        self._answers: asyncio.Queue[object] = asyncio.Queue()

    def _heard(self, _: Link, answer: object) -> None:
        self._answers.put_nowait(answer)

    async def ask(self, question: Hello | Open | Act) -> object:
        self.link.send(question)
        async with asyncio.timeout(20):
            return await self._answers.get()

    async def is_shut_out(self) -> None:
        """Wait until the other side hung up."""
        async with asyncio.timeout(20):
            await self.ended.wait()


async def test_a_repeated_action_is_carried_out_once(host: str, hosts: Hosts) -> None:
    raw = Raw()
    await asyncio.get_running_loop().create_unix_connection(lambda: raw.link, host)
    assert await raw.ask(Hello(id=1, token="")) == Done(id=1)
    opened = await raw.ask(Open(id=2, task=task(hosts)))
    assert isinstance(opened, Opened)
    act = call_text("count", {})
    answers = [
        await raw.ask(Act(id=number, session=opened.session, number=step, action=act))
        for number, step in ((3, 1), (4, 1), (5, 2), (6, 2))
    ]
    assert [a.id for a in answers if isinstance(a, Acted)] == [3, 4, 5, 6]
    assert [a.result.observation for a in answers if isinstance(a, Acted)] == ["1", "1", "2", "2"]
    unknown = await raw.ask(Act(id=7, session=99, number=1, action=act))
    assert isinstance(unknown, Fault) and unknown.outcome is Outcome.CANCELLED
    raw.link.close()
    await raw.ended.wait()


async def test_who_does_not_say_hello_or_speaks_otherwise_is_shut_out(host: str) -> None:
    loop = asyncio.get_running_loop()
    nested = b"\x82\xa4type\xa5hello\xa1x" + b"\x91" * 100_000
    frames = [len(body).to_bytes(4, "big") + body for body in (b"\xc1", b"\x81\xa1\xff", nested)]
    for frame in (*frames, b"\xff\xff\xff\xff"):
        raw = Raw()
        transport, _ = await loop.create_unix_connection(lambda raw=raw: raw.link, host)
        transport.write(frame)
        await raw.is_shut_out()
    raw = Raw()
    await loop.create_unix_connection(lambda: raw.link, host)
    raw.link.send(Act(id=1, session=1, number=1, action=""))
    await raw.is_shut_out()
    raw = Raw()
    await loop.create_unix_connection(lambda: raw.link, host)
    assert isinstance(await raw.ask(Hello(id=1, token="", format=99)), Refusal)
    raw.link.close()
    await raw.ended.wait()


class HostProcess:
    """`python -m envpool.host` at one address, killed and started again."""

    def __init__(self, address: Path) -> None:
        self.address = str(address)
        self.num_kills = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "envpool.host", "--listen", self.address),
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == f"ready: {self.address}\n".encode()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def kill(self) -> None:
        """Kill it, and start another."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()
        self.num_kills += 1
        await self.start()

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            assert await self._process.wait() == 0


async def start_two(stack: AsyncExitStack, folder: Path) -> list[HostProcess]:
    """Two hosts, which end with `stack`."""
    both = [HostProcess(folder / "a.sock"), HostProcess(folder / "b.sock")]
    for one in both:
        await one.start()
        stack.push_async_callback(one.stop)
    return both


def processes(pid: int) -> list[psutil.Process]:
    """What descends from a host, zygotes first, then sessions."""
    return psutil.Process(pid).children(recursive=True)


async def test_nothing_of_a_host_outlives_it(tmp_path: Path) -> None:
    host = HostProcess(tmp_path / "a.sock")
    await host.start()
    async with await Hosts.start(
        [host.address],
        {"hostile": HOSTILE, "basics": PoolSection(source="envpool.envs:basics")},
        limits=LIMITS,
    ) as hosts:
        sessions = [await hosts.open(task(hosts)) for _ in range(3)]
        before = await asyncio.to_thread(processes, host.pid)
        assert {session.pid for session in sessions} <= {process.pid for process in before}
        os.kill(host.pid, signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, before, 20)
        assert not alive and len(gone) >= 6  # root, two zygotes, sessions


@pytest.mark.parametrize("is_open", [True, False])
async def test_sessions_leave_a_host_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_open: bool
) -> None:
    limits = EnvPoolSection(step_timeout_s=1.0)
    async with AsyncExitStack() as stack:
        both = await start_two(stack, tmp_path)
        addresses = [one.address for one in both]
        hosts = await stack.enter_async_context(
            await Hosts.start(addresses, {"hostile": HOSTILE}, limits=limits, num_near=1)
        )
        for module in ("hostlink", "remote"):
            monkeypatch.setattr(f"envpool.{module}.GRACE_S", 1.0)
        session = await hosts.open(task(hosts)) if is_open else None
        os.kill(both[0].pid, signal.SIGSTOP)
        stack.callback(os.kill, both[0].pid, signal.SIGCONT)
        async with asyncio.timeout(40):
            session = session or await hosts.open(task(hosts))
            # More than the sockets hold of what nobody reads.
            assert (await session.step("x" * 2**21)).is_bad_call
            await session.close()


NUM_SESSIONS, NUM_ROUNDS = 300, 5


async def play(hosts: Hosts, seed: int, barrier: asyncio.Barrier | None) -> list[str]:
    """A transcript; at the barrier the sessions wait for each other, and for who disturbs them."""
    rng = random.Random(seed)
    async with hosts.session(task(hosts, seed, number=seed)) as session:
        found = [session.prompt]
        for _ in range(NUM_ROUNDS):
            if barrier is not None:
                await barrier.wait()
            found += [await call(session, rng.choice(("count", "chance"))) for _ in range(3)]
    return found


def workers(host: HostProcess) -> tuple[psutil.Process | None, list[psutil.Process]]:
    """The zygote of a host that has one, and its sessions."""
    for root in psutil.Process(host.pid).children():
        for zygote in root.children():
            return zygote, zygote.children()
    return None, []


def _is_killed(pid: int) -> bool:
    """Kill a process; whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def disturb(both: list[HostProcess], barrier: asyncio.Barrier) -> dict[str, int]:
    """Kill sessions, a zygote and a host in each round; returns how many of each."""
    rng, killed = random.Random(0), {"worker": 0, "zygote": 0, "host": 0}
    for number in range(NUM_ROUNDS):
        await barrier.wait()
        zygote, busiest = None, both[0]
        processes: list[psutil.Process] = []
        while zygote is None or len(processes) < 50:  # those that were lost come back with a step
            found = [(*await asyncio.to_thread(workers, host), host) for host in both]
            zygote, processes, busiest = max(found, key=lambda one: len(one[1]))
        for process in rng.sample(processes, 10):
            killed["worker"] += _is_killed(process.pid)
            await asyncio.sleep(0)  # the others go on with their step
        killed["zygote"] += _is_killed(zygote.pid)
        await asyncio.sleep(0.05)
        others = [host for host in both if host is not busiest]
        await (others[0] if number % 2 else busiest).kill()
        killed["host"] += 1
    return killed


@pytest.mark.timeout(600)
async def test_three_hundred_sessions_on_two_hosts_survive_everything(tmp_path: Path) -> None:
    limits = EnvPoolSection(step_timeout_s=60.0, start_timeout_s=120.0)
    async with AsyncExitStack() as stack:
        both = await start_two(stack, tmp_path)
        addresses = [one.address for one in both]
        hosts = await stack.enter_async_context(
            await Hosts.start(addresses, {"hostile": HOSTILE}, limits=limits)
        )
        async with asyncio.TaskGroup() as group:
            calm = [group.create_task(play(hosts, seed, None)) for seed in range(NUM_SESSIONS)]
        barrier = asyncio.Barrier(NUM_SESSIONS + 1)
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(play(hosts, seed, barrier)) for seed in range(NUM_SESSIONS)]
            killing = group.create_task(disturb(both, barrier))
    killed = killing.result()
    assert killed["worker"] >= 5 and killed["zygote"] >= 5 and killed["host"] >= 5
    assert [one.result() for one in others] == [one.result() for one in calm]


async def test_a_host_that_says_nothing_hides_no_other(host: str, tmp_path: Path) -> None:
    silent, held = str(tmp_path / "silent.sock"), []

    def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    async with await asyncio.start_unix_server(hold, silent):
        limits = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=5.0)  # less than its patience
        both = [silent, host]
        async with (
            await Hosts.start(both, {"hostile": HOSTILE}, limits=limits) as hosts,
            hosts.session(task(hosts)) as session,
        ):
            assert await call(session, "count") == "1"
        for writer in held:
            writer.close()
    assert held


async def test_a_host_that_comes_later_serves_what_it_missed(tmp_path: Path) -> None:
    odd = PoolSection(source=str(await asyncio.to_thread(write_pool, tmp_path / "odd")))
    first, second = str(tmp_path / "first.sock"), str(tmp_path / "second.sock")
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(await EnvPool.start(limits=LIMITS)) for _ in range(2)
        ]
        one = await stack.enter_async_context(Host(pools[0]))
        await one.listen(first)
        hosts = await stack.enter_async_context(
            await Hosts.start([first, second], {"hostile": HOSTILE}, limits=LIMITS)
        )
        key = (await hosts.plug("odd", odd)).key
        hostile = hosts.served()[0].key
        other = await stack.enter_async_context(Host(pools[1]))
        await other.listen(second)
        odd_task = Task(
            pool="odd", pool_version=key.version, env="odd_number", config={"number": 1}, seed=0
        )
        async with asyncio.timeout(20):
            while {plugged.key for plugged in pools[1].served()} != {key, hostile}:
                async with hosts.session(odd_task) as session:
                    assert await call(session, "look") == "1 first"
                await asyncio.sleep(0.01)
        await hosts.retire(key)
        async with asyncio.timeout(20):
            while any(len(pool.served()) > 1 for pool in pools):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
