"""Versions of pools that come and go while sessions run."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from configs.load import ConfigError
from configs.schema import EnvPoolSection, PoolSection
from envpool import folder, sandbox
from envpool.env import call_text
from envpool.pool import EnvFault, EnvPool, Outcome
from envpool.served import Served
from envpool.spawn import Root
from envpool.task import Config, PoolKey, Task
from tests.envpool.calls import call
from tests.envpool.odd_pool import write_pool

LIMITS = EnvPoolSection(step_timeout_s=5.0, spares=0)
TRUSTS = [True, pytest.param(False, marks=pytest.mark.skipif(bool(sandbox.lacking()), reason="-"))]


async def written(path: Path, *words: str) -> Path:
    return await asyncio.to_thread(write_pool, path, *words)


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
    await asyncio.to_thread(path.write_text, text)


async def ended(pid: int) -> None:
    """Wait until a process is gone."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(psutil.pid_exists, pid):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def edit(path: Path, old: str, new: str) -> None:
    text = await asyncio.to_thread(path.read_text)
    assert old in text
    await asyncio.to_thread(path.write_text, text.replace(old, new))


def task(key: PoolKey, env: str = "odd_number", config: Config | None = None) -> Task:
    config = {"number": 5} if config is None else config
    return Task(pool=key.name, pool_version=key.version, env=env, config=config, seed=1)


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start(limits=LIMITS) as pool:
        yield pool


@pytest.mark.parametrize("trusted", TRUSTS)
async def test_a_directory_is_plugged_in_and_replaced_while_a_session_runs(
    pool: EnvPool, tmp_path: Path, *, trusted: bool
) -> None:
    section = PoolSection(source=str(await written(tmp_path / "odd", "first")), trusted=trusted)
    first = await pool.plug("odd", section)
    assert first.key.name == "odd" and first.envs == ["odd_number"]
    assert bool(first.layers) is not trusted
    async with pool.session(task(first.key)) as old:
        assert await call(old, "look") == "1 first"
        await written(tmp_path / "odd", "second")
        second = await pool.plug("odd", section)
        assert second.key != first.key
        assert pool.versions() == {"odd": second.key.version}
        async with pool.session(task(second.key)) as new:
            assert await call(new, "look") == "1 second"
        await pool.retire(first.key)
        with pytest.raises(EnvFault, match="removed or replaced"):
            await pool.open(task(first.key))
        # Its own text is served to the end, whatever becomes of the zygote and of the file.
        process = await asyncio.to_thread(psutil.Process, old.pid)
        os.kill(await asyncio.to_thread(process.ppid), signal.SIGKILL)
        await ended(old.pid)
        assert await call(old, "look") == "2 first"
        assert len(await _copies(pool)) == 2
    async with asyncio.timeout(20):
        while len(pool.served()) > 1:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert pool.served() == [second]
    with pytest.raises(EnvFault, match="is served in version"):
        await pool.open(task(first.key))


async def _copies(pool: EnvPool) -> set[Path]:
    """The directories that pools are served from."""
    copies = pool._copies.folder
    assert copies is not None
    return {path.parent for path in await asyncio.to_thread(lambda: list(copies.glob("*/*.py")))}


async def test_copies_are_gone_with_the_pool(tmp_path: Path) -> None:
    source = str(await written(tmp_path / "odd"))
    async with await EnvPool.start({"odd": PoolSection(source=source)}, limits=LIMITS) as pool:
        copies = pool._copies.folder
        assert copies is not None and await _copies(pool)
    assert not await asyncio.to_thread(copies.exists)


async def test_the_same_code_is_one_version_wherever_it_lies(pool: EnvPool, tmp_path: Path) -> None:
    one = await pool.plug("odd", PoolSection(source=str(await written(tmp_path / "a"))))
    other = await pool.plug("odd", PoolSection(source=str(await written(tmp_path / "b"))))
    assert one.key == other.key
    assert len(pool.served()) == 1
    await write(tmp_path / "b" / "data.txt", "part of it")
    assert (await pool.plug("odd", PoolSection(source=str(tmp_path / "b")))).key != one.key


async def test_a_single_file_and_helper_modules(pool: EnvPool, tmp_path: Path) -> None:
    await written(tmp_path / "odd", "{_words.WORD}")
    path = tmp_path / "odd" / "odd_number.py"
    await edit(path, "import msgspec", "import msgspec, _words")
    await write(tmp_path / "odd" / "_words.py", "WORD = 'imported'\n")
    plugged = await pool.plug("odd", PoolSection(source=str(tmp_path / "odd")))
    async with pool.session(task(plugged.key)) as session:
        assert await call(session, "look") == "1 imported"
    alone = (await written(tmp_path / "alone", "alone")) / "odd_number.py"
    plugged = await pool.plug("alone", PoolSection(source=str(alone)))
    async with pool.session(task(plugged.key)) as session:
        assert await call(session, "look") == "1 alone"


async def test_tasks_that_are_listed_stand_in_for_sample(pool: EnvPool, tmp_path: Path) -> None:
    path = (await written(tmp_path / "odd")) / folder.TASKS
    await write(
        path,
        "".join(f'{{"env": "odd_number", "config": {{"number": {n}}}}}\n' for n in range(5))
        + '\n{"env": "odd_number", "config": {"number": 77}, "level": 1}\n',
    )
    key = (await pool.plug("odd", PoolSection(source=str(tmp_path / "odd")))).key
    draws = [
        await pool.draw(key, "odd_number", level=level, seed=seed, count=3)
        for level, seed in ((0, 0), (0, 1), (0, 2), (1, 0), (2, 0))
    ]
    numbers = [[config["number"] for config in configs] for configs in draws]
    assert numbers == [[0, 1, 2], [3, 4], [], [77], []]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("odd_number.py", "import nonsuch_module", r"odd_number.py:1: No module named 'nonsuch_m"),
        ("odd_number.py", "def f(:", r"odd_number.py:1: .*[Ss]yntax"),
        ("odd_number.py", "x = 1", "has no ToolEnv class"),
        ("json.py", "x = 1", r"json.py cannot be imported .* has: rename it"),
        ("two-words.py", "x = 1", "two-words.py cannot be imported .* no Python identifier"),
        (
            "other.py",
            "from envpool.env import ToolEnv\nclass OddNumber(ToolEnv): pass",
            "are both 'odd_number': rename one",
        ),
        ("tasks.jsonl", '{"env": "odd_number"}', "tasks.jsonl:1: .*config"),
        ("tasks.jsonl", '\n{"env": "even", "config": {}}', "tasks.jsonl:2: no env 'even'"),
    ],
)
async def test_what_is_wrong_is_said_with_its_place(
    pool: EnvPool, tmp_path: Path, name: str, text: str, message: str
) -> None:
    await write((await written(tmp_path / "odd")) / name, text)
    with pytest.raises(ConfigError, match=message) as caught:
        await pool.plug("odd", PoolSection(source=str(tmp_path / "odd")))
    assert "millrace-pools-" not in str(caught.value)
    assert not pool.served()
    assert not await _copies(pool)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", "does not exist"),
        ("nowhere.py", "does not exist"),
        ("~nobody-of-this-name/pool", "cannot be read: Could not determine home"),
        ("nothing", r"not the path of .*\./nothing.*entry point"),
        ("{tmp}/notes.txt", "is no Python file"),
        ("{tmp}/empty", "has no .py file"),
    ],
)
async def test_a_source_that_is_nowhere(
    pool: EnvPool, tmp_path: Path, source: str, message: str
) -> None:
    await write(tmp_path / "notes.txt", "-")
    await asyncio.to_thread((tmp_path / "empty").mkdir)
    with pytest.raises(ConfigError, match=message):
        await pool.plug("odd", PoolSection(source=source.format(tmp=tmp_path)))


@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_source_that_cannot_be_read_is_said(
    pool: EnvPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_alone: bool
) -> None:
    path = (await written(tmp_path / "odd")) / "odd_number.py"
    section = PoolSection(source=str(path if is_alone else path.parent))

    def unreadable(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ConfigError, match=r"pools.odd.source.*cannot be read: .*Permission denied"):
        await pool.plug("odd", section)
    # One that is too large is not even tried.
    await asyncio.to_thread(os.truncate, path, folder.MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="has over 2000 files or 8 MiB"):
        await pool.plug("odd", section)


async def test_a_mistake_in_an_env_is_said_with_the_authors_own_file(
    pool: EnvPool, tmp_path: Path
) -> None:
    path = (await written(tmp_path / "odd")) / "odd_number.py"
    await edit(path, "self.config.number", "self.config.numbre")
    plugged = await pool.plug("odd", PoolSection(source=str(tmp_path / "odd")))
    with pytest.raises(
        ConfigError, match=r"reference\(\) raised AttributeError.*odd_number.py:"
    ) as e:
        await pool.try_env(plugged.key, "odd_number", level=0)
    assert str(path) in str(e.value)
    await written(tmp_path / "odd")
    plugged = await pool.plug("odd", PoolSection(source=str(tmp_path / "odd")))
    await pool.try_env(plugged.key, "odd_number", level=0)


async def test_a_function_and_an_entry_point_are_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await asyncio.to_thread(write_pool, tmp_path, name="oddities.py")
    make = "\n\ndef make():\n    return {'odd_number': OddNumber}\n"
    await edit(path / "oddities.py", "import msgspec\n", "import msgspec\n" + make)
    info = tmp_path / "oddities-1.0.dist-info"
    await write(info / "METADATA", "Metadata-Version: 2.1\nName: oddities\nVersion: 1.0\n")
    await write(info / "entry_points.txt", "[millrace.pools]\nodd-things = oddities:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with await EnvPool.start(limits=LIMITS) as pool:  # its processes see the path of now
        for source in ("oddities:make", "odd-things"):
            plugged = await pool.plug("odd", PoolSection(source=source, trusted=True))
            async with pool.session(task(plugged.key)) as session:
                assert await call(session, "look") == "1 first"
        with pytest.raises(ConfigError, match="did you mean odd-things"):
            await pool.plug("odd", PoolSection(source="odd-thing", trusted=True))


async def test_limits_of_a_pool_override_those_of_all(pool: EnvPool, tmp_path: Path) -> None:
    path = (await written(tmp_path / "odd")) / "odd_number.py"
    await edit(path, "self.looks += 1", "__import__('time').sleep(3)")
    section = PoolSection(source=str(path), step_timeout_s=0.2, is_replayable=False)
    plugged = await pool.plug("odd", section)
    async with pool.session(task(plugged.key)) as session:
        with pytest.raises(EnvFault) as caught:
            await session.step(call_text("look", {}))
        assert caught.value.outcome is Outcome.TIMEOUT
        assert "0.2 s" in str(caught.value)


async def test_spares_are_forked_ahead_and_used(tmp_path: Path) -> None:
    section = PoolSection(source=str(await written(tmp_path / "odd")))
    limits = EnvPoolSection(spares=3)
    async with await EnvPool.start({"odd": section}, limits=limits) as pool:
        key = pool.served()[0].key
        zygote = await asyncio.to_thread(psutil.Process, pool.pids()["odd"])
        async with pool.session(task(key)) as one:
            spares = await _children(zygote, without=one.pid, count=3)
            async with pool.session(task(key)) as other:
                assert other.pid in spares
                assert await call(other, "look") == "1 first"
                assert len(await _children(zygote, without=one.pid, count=4)) == 4
            os.kill(one.pid, signal.SIGKILL)
            for pid in spares - {other.pid}:
                os.kill(pid, signal.SIGKILL)
            assert await call(one, "look") == "1 first"  # a dead spare is nobody's trouble


async def _children(process: psutil.Process, *, without: int, count: int) -> set[int]:
    """Its children, as soon as there are `count`."""
    async with asyncio.timeout(20):
        while True:
            pids = {child.pid for child in await asyncio.to_thread(process.children)} - {without}
            if len(pids) >= count:
                return pids
            await asyncio.sleep(0.01)


async def test_idle_processes_end_and_their_sessions_go_on(tmp_path: Path) -> None:
    section = PoolSection(source=str(await written(tmp_path / "odd")))
    limits = EnvPoolSection(spares=0, idle_timeout_s=0.2)
    async with await EnvPool.start({"odd": section}, limits=limits) as pool:
        key = pool.served()[0].key
        async with pool.session(task(key)) as session:
            assert await call(session, "look") == "1 first"
            before = session.pid
            async with asyncio.timeout(20):
                while pool.session_pids():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            assert await call(session, "look") == "2 first"
            assert session.pid != before


async def test_sessions_survive_the_process_that_zygotes_come_from(
    pool: EnvPool, tmp_path: Path
) -> None:
    plugged = await pool.plug("odd", PoolSection(source=str(await written(tmp_path / "odd"))))
    async with pool.session(task(plugged.key)) as session:
        assert await call(session, "look") == "1 first"
        root = pool.root_pid
        os.kill(root, signal.SIGKILL)
        await ended(session.pid)
        assert await call(session, "look") == "2 first"
        assert pool.root_pid != root
    await pool.plug("more", PoolSection(source=str(await written(tmp_path / "more", "other"))))


async def test_pools_plugged_at_once(pool: EnvPool, tmp_path: Path) -> None:
    sections = [
        PoolSection(source=str(await written(tmp_path / f"p{n}", f"word{n}"))) for n in range(6)
    ]
    async with asyncio.TaskGroup() as group:
        plugging = [
            group.create_task(pool.plug(f"p{n}", section), name=f"plug {n}")
            for n, section in enumerate(sections)
        ]
    for n, one in enumerate(plugging):
        async with pool.session(task(one.result().key)) as session:
            assert await call(session, "look") == f"1 word{n}"


async def test_a_version_plugged_in_again_as_its_last_session_ends_stays(
    pool: EnvPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PoolSection(source=str(await written(tmp_path / "odd")))
    plugged = await pool.plug("odd", section)
    session = await pool.open(task(plugged.key))
    await pool.retire(plugged.key)
    start = Served.start
    closing: list[asyncio.Task[None]] = []

    async def start_as_it_ends(served: Served, root: Callable[[], Root]) -> None:
        await start(served, root)
        closing.append(asyncio.create_task(session.close(), name="close"))
        await asyncio.sleep(0)

    monkeypatch.setattr(Served, "start", start_as_it_ends)
    assert await pool.plug("odd", section) == plugged
    await asyncio.gather(*closing)
    async with pool.session(task(plugged.key)) as again:
        assert await call(again, "look") == "1 first"


async def test_who_waits_for_room_revives_no_version_that_is_gone(tmp_path: Path) -> None:
    odd = PoolSection(source=str(await written(tmp_path / "odd")))
    modules = PoolSection(source="envpool.envs:basics", trusted=True)
    limits = EnvPoolSection(spares=0, max_sessions=1)
    async with await EnvPool.start({"odd": odd, "basics": modules}, limits=limits) as pool:
        keys = {one.key.name: one.key for one in pool.served()}
        async with pool.session(task(keys["odd"])):
            work = pool.draw(keys["basics"], "sum_list", level=0, seed=0, count=1)
            waiting = asyncio.create_task(work, name="draw")
            await asyncio.sleep(0)
            await pool.retire(keys["basics"])
            root = await asyncio.to_thread(psutil.Process, pool.root_pid)
            assert len(await asyncio.to_thread(root.children)) == 1
        with pytest.raises(EnvFault, match="removed or replaced"):
            await waiting
        assert len(await asyncio.to_thread(root.children)) == 1
