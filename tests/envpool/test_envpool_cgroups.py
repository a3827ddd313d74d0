"""Control groups: found, made, bounding all sessions of a pool, and removed."""

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from configs.schema import EnvPoolSection, PoolSection
from envpool import cgroups, sandbox
from envpool.cgroups import Group, Place
from envpool.pool import EnvFault, EnvPool, Outcome
from envpool.sandbox import Layer
from tests.envpool.calls import call, task

UNTRUSTED = PoolSection(source="hostile_envs:pool", is_replayable=False)
PLACES = cgroups.find()
real = pytest.mark.skipif(
    bool(sandbox.lacking()) or not PLACES, reason="no group can be made here, or nothing isolates"
)


def groups_of(pid: int) -> list[Path]:
    return [found for place in PLACES for found in place.directory.glob(f"{cgroups.PREFIX}{pid}-*")]


@real
async def test_a_pool_has_a_group_as_long_as_it_is_served() -> None:
    limits = EnvPoolSection(max_sessions=8, pool_memory_mb=300)
    async with await EnvPool.start({"hostile": UNTRUSTED}, limits=limits) as pool:
        assert Layer.CGROUP in pool.layers()["hostile"]
        root = pool.root_pid
        found = await asyncio.to_thread(groups_of, root)
        assert len(found) == len(PLACES)
        async with await pool.open(task(pool)) as session:
            for group in found:
                inside = await asyncio.to_thread((group / "cgroup.procs").read_text)
                assert {str(session.pid), str(pool.pids()["hostile"])} <= set(inside.split())
    assert not await asyncio.to_thread(groups_of, root)


@real
async def test_a_trusted_pool_has_none() -> None:
    section = PoolSection(source="hostile_envs:pool", trusted=True)
    async with await EnvPool.start({"hostile": section}, limits=EnvPoolSection()) as pool:
        assert not await asyncio.to_thread(groups_of, pool.root_pid)


@real
async def test_sessions_that_fill_memory_together_end_one_by_one() -> None:
    """Each stays within its own limit; the largest are killed, the pool and the small ones live."""
    limits = EnvPoolSection(max_sessions=16, pool_memory_mb=250, step_timeout_s=20.0, spares=0)
    sections = {"hostile": UNTRUSTED, "other": UNTRUSTED}
    async with await EnvPool.start(sections, limits=limits) as pool:
        zygotes = pool.pids()
        outcomes = []
        async with await pool.open(task(pool)) as small:
            held = [await pool.open(task(pool)) for _ in range(6)]
            for session in held:
                try:
                    await call(session, "run", code="env.kept = b'x' * 80_000_000")
                    outcomes.append(Outcome.OK)
                except EnvFault as fault:
                    outcomes.append(fault.outcome)
            pids = [session.pid for session in held]
            live = await asyncio.to_thread(lambda: [pid for pid in pids if psutil.pid_exists(pid)])
            assert 0 < len(live) < len(held)
            assert set(outcomes) <= {Outcome.OK, Outcome.CRASHED}
            assert await call(small, "count") == "1"
            for session in held:
                await session.close()
            async with await pool.open(task(pool)) as session:
                assert await call(session, "count") == "1"
        assert pool.pids() == zygotes


@real
async def test_groups_of_a_root_that_was_killed_are_swept() -> None:
    async with await EnvPool.start({"hostile": UNTRUSTED}, limits=EnvPoolSection()) as pool:
        killed, zygote = pool.root_pid, pool.pids()["hostile"]
        os.kill(killed, 9)
        async with asyncio.timeout(20):
            while await asyncio.to_thread(Path(f"/proc/{zygote}").exists):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await asyncio.to_thread(groups_of, killed)
    async with await EnvPool.start({"hostile": UNTRUSTED}, limits=EnvPoolSection()) as pool:
        assert not await asyncio.to_thread(groups_of, killed)


# -- where they are, on machines unlike this one -------------------------------------------------


def machine(tmp_path: Path, cgroup: str, mounts: dict[str, str]) -> Path:
    """What `/proc/self` says there; `mounts`: by mount point, its line after the dash."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    lines = [
        f"30 20 0:26 / {tmp_path / point} rw,nosuid - {rest}\n" for point, rest in mounts.items()
    ]
    (proc / "mountinfo").write_text("".join(lines))
    return proc


def group(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


def test_version_2_where_processes_have_a_group_below_the_delegated_one(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    delegated = group(
        top / "run.service",
        cgroup_controllers="cpu memory pids",
        cgroup_subtree_control="memory pids",
    )
    group(delegated / "supervisor", cgroup_controllers="memory pids", cgroup_subtree_control="")
    proc = machine(tmp_path, "0::/run.service/supervisor\n", {"fs": "cgroup2 cgroup2 rw"})
    os.setxattr(delegated, "user.delegate", b"1")
    # Written to, as a file that is no group's takes everything.
    assert cgroups.find(proc)[0].version == 2
    (delegated / "supervisor" / "cgroup.controllers").write_text("cpu")
    assert cgroups.find(proc) == [Place(delegated, top, 2, cgroups.CONTROLLERS)]
    os.setxattr(delegated, "user.delegate", b"0")
    assert cgroups.find(proc) == []


def test_version_1_needs_both_hierarchies(tmp_path: Path) -> None:
    own = "4:memory:/box/1\n3:pids:/\n0::/\n"
    mounts = {"memory": "cgroup cgroup rw,memory", "pids": "cgroup cgroup rw,pids"}
    proc = machine(tmp_path, own, mounts)
    memory, pids = group(tmp_path / "memory" / "box" / "1"), group(tmp_path / "pids")
    assert cgroups.find(proc) == [
        Place(memory, tmp_path / "memory", 1, ("memory",)),
        Place(pids, pids, 1, ("pids",)),
    ]
    (proc / "cgroup").write_text("4:memory:/box/1\n0::/\n")
    assert cgroups.find(proc) == []


def test_no_hierarchy_at_all(tmp_path: Path) -> None:
    assert cgroups.find(tmp_path) == []
    assert Group.make([], 1, memory_bytes=0, max_tasks=10) is None


def test_half_of_the_memory_that_the_groups_above_leave(tmp_path: Path) -> None:
    inner = group(tmp_path / "box" / "own", memory_max="max")
    group(tmp_path / "box", memory_max=str(10 << 20))
    place = Place(inner, tmp_path, 2, cgroups.CONTROLLERS)
    assert cgroups.memory_here(place) == 10 << 20
    made = Group.make([place], 7, memory_bytes=0, max_tasks=10)
    assert made is not None
    assert (made.directories[0] / "memory.max").read_text() == str(5 << 20)
    assert (made.directories[0] / "pids.max").read_text() == "10"


def test_a_group_that_cannot_be_made_is_none(tmp_path: Path) -> None:
    missing = Place(tmp_path / "gone", tmp_path, 2, cgroups.CONTROLLERS)
    assert Group.make([missing], 1, memory_bytes=1, max_tasks=1) is None
