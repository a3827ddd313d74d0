"""The control plane over real HTTP, in front of a coordinator between fakes."""

import asyncio
import re
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest

import launch
from configs.load import load
from configs.schema import ControlSection
from rollout import rundir
from rollout.control import ControlFile, serve
from rollout.files import RolloutRow
from rollout.status import Saved, Status
from tests.coordinating import Bench, make_bench, playing, until, when
from tests.recipes import BASICS

LONG = ("learner.steps=100000", "checkpoint.every=0", "rollout.group_size=2")


@asynccontextmanager
async def served(
    bench: Bench, section: ControlSection | None = None
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the server in front of a bench; the run itself is the test's."""
    section = section or ControlSection()
    async with (
        serve(bench.run_dir, section=section, desk=bench.coordinator.desk) as url,
        aiohttp.ClientSession(url) as client,
    ):
        yield client


async def close(bench: Bench) -> None:
    await asyncio.to_thread(bench.files.close)


async def error_of(response: aiohttp.ClientResponse) -> str:
    assert response.content_type == "application/json"
    found = msgspec.json.decode(await response.read())
    assert list(found) == ["error"]
    return found["error"]


async def read_control(run_dir: Path) -> ControlFile:
    data = await asyncio.to_thread((run_dir / "control.json").read_bytes)
    return msgspec.json.decode(data, type=ControlFile)


async def test_status_is_served_where_control_json_says(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench):
        control = await read_control(tmp_path)
        assert control.url.startswith("http://127.0.0.1:") and control.token == ""
        async with aiohttp.ClientSession() as client, client.get(f"{control.url}/status") as got:
            assert got.status == 200
            found = msgspec.json.decode(await got.read(), type=Status)
    status = bench.coordinator.status()
    assert found == msgspec.structs.replace(status, uptime_s=found.uptime_s)
    assert not await asyncio.to_thread((tmp_path / "control.json").exists)
    await close(bench)


async def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench):
        port = int((await read_control(tmp_path)).url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=str(port)):
            async with served(bench, ControlSection(port=port)):
                pass
    await close(bench)


# -- who may ask ----------------------------------------------------------------------------------


async def test_any_address_but_loopback_needs_the_token(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench, ControlSection(host="0.0.0.0")) as client:
        control = await read_control(tmp_path)
        assert len(control.token) >= 32
        mode = await asyncio.to_thread((tmp_path / "control.json").stat)
        assert stat.S_IMODE(mode.st_mode) == 0o600
        wrong = [{}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {control.token}"}]
        wrong.append({"Authorization": "Bearer \udcff"})
        for headers in wrong:
            for path in ("/status", "/nowhere"):
                async with client.get(path, headers=headers) as got:
                    assert got.status == 401 and got.headers["WWW-Authenticate"] == "Bearer"
                    assert "control.json" in await error_of(got)
        async with client.post("/pause") as got:
            assert got.status == 401
        assert not bench.coordinator.status().is_paused
        right = {"Authorization": f"Bearer {control.token}"}
        async with client.get("/status", headers=right) as got:
            assert got.status == 200
        # The token is enough, whatever the machine is called from where it is asked.
        async with client.get("/status", headers={**right, "Host": "node-7:80"}) as got:
            assert got.status == 200
    await close(bench)


async def test_a_token_that_was_set_is_needed_on_loopback_too(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench, ControlSection(token="sesame")) as client:
        async with client.get("/status") as got:
            assert got.status == 401
        async with client.get("/status", headers={"Authorization": "bearer sesame"}) as got:
            assert got.status == 200
    await close(bench)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example:80"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:1234"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:7", "Origin": "http://localhost:8"}, 403),
        ({"Host": "localhost:7", "Origin": "http://localhost:7"}, 200),
    ],
)
async def test_pages_from_elsewhere_are_not_answered(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench) as client, client.post("/pause", headers=headers) as got:
        assert got.status == status
        if status != 200:
            assert await error_of(got)
    assert bench.coordinator.status().is_paused is (status == 200)
    await close(bench)


async def test_the_token_is_in_no_file_but_control_json(tmp_path: Path) -> None:
    settings = [BASICS, "control.token=sesame", f"run.dir={tmp_path / 'run'}"]
    config = await asyncio.to_thread(load, settings)
    run_dir = await asyncio.to_thread(rundir.prepare, config)

    def leaks() -> list[str]:
        files = [path for path in run_dir.rglob("*") if path.is_file()]
        # The diff of the checkout may hold this test.
        return [p.name for p in files if p.name != "code.diff" and b"sesame" in p.read_bytes()]

    assert await asyncio.to_thread(leaks) == []
    assert config.control.token == "sesame" and config.without_secrets().control.token == ""


# -- what is answered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("POST", "/status", 405),
        ("GET", "/rollouts?limit=0", 400),
        ("GET", "/rollouts?limit=many", 400),
    ],
)
async def test_errors_are_json(tmp_path: Path, method: str, path: str, status: int) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench) as client, client.request(method, path) as got:
        assert got.status == status
        words = await error_of(got)
        assert words
        if "limit" in path:
            assert "limit=" in words and "from 1 to 200" in words
    await close(bench)


async def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench) as client:
        async with client.get("/metrics") as got:
            assert "millrace_time_step_seconds" not in await got.text()  # nothing is trained yet
        await bench.run()
        async with client.get("/metrics") as got:
            assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            text = await got.text()
    sample = re.compile(r'[a-z_0-9]+(\{([a-z_]+="[^"\n]*",?)+\})? (NaN|[+-]?[0-9.e+-]+|[+-]Inf)')
    typed: dict[str, str] = {}
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, current, kind = line.split()
            assert current not in typed  # each metric once, its samples together
            typed[current] = kind
        else:
            assert sample.fullmatch(line), line
            assert re.split(r"[{ ]", line)[0] == current
    assert text.endswith("\n")
    assert all((kind == "counter") is name.endswith("_total") for name, kind in typed.items())
    counts = bench.coordinator.ledger.counts()
    assert f'millrace_groups_total{{state="trained"}} {counts.groups["trained"]}\n' in text
    assert f'millrace_rollouts_total{{state="trained"}} {counts.rollouts["trained"]}\n' in text
    assert "\nmillrace_step 6\n" in text and "\nmillrace_is_paused 0\n" in text
    for name in ("time_step_seconds", "time_wait_rollout_seconds", "reward_mean"):
        assert typed[f"millrace_{name}"] == "gauge"
    assert 'millrace_stop_frac{reason="answered"} 1.0\n' in text
    assert 'millrace_curriculum_pass_rate{pool="basics",env="sum_list"} 0.5\n' in text


async def test_rollouts_are_readable_newest_first(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    async with served(bench) as client:
        await bench.run()
        async with client.get("/rollouts?limit=3") as got:
            rows = msgspec.json.decode(await got.read(), type=list[RolloutRow])
        async with client.get("/rollouts?limit=3", headers={"Accept": "text/plain"}) as got:
            assert got.content_type == "text/plain"
            text = await got.text()
    written = await bench.rows()
    assert rows == written[:-4:-1]
    assert text.count("group cancelled") + text.count("trained") + text.count("filtered") >= 3
    assert all(f"{row.group_id}/{row.member} {row.env}" in text for row in rows)


# -- pausing --------------------------------------------------------------------------------------


async def test_a_paused_run_begins_nothing_until_it_goes_on(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client, playing(bench) as run:
        await until(bench, step=2)
        for _ in range(2):
            async with client.post("/pause") as got:
                assert got.status == 200
                assert msgspec.json.decode(await got.read(), type=Status).is_paused
        await when(lambda: bench.coordinator.status().groups["running"] == 0)
        await asyncio.sleep(0.2)  # a step that had begun ends
        granted, step = len(bench.actors[0].granted), bench.coordinator.steps_done
        bench.clock.turned_s += 1000  # much more than the watchdog puts up with
        await asyncio.sleep(1.2)
        assert not run.done()
        assert (len(bench.actors[0].granted), bench.coordinator.steps_done) == (granted, step)
        status = bench.coordinator.status()
        assert status.is_paused and status.groups["running"] == 0
        async with client.post("/resume") as got:
            assert not msgspec.json.decode(await got.read(), type=Status).is_paused
        await until(bench, step=step + 3)
    lines = (await asyncio.to_thread((tmp_path / "metrics.jsonl").read_bytes)).splitlines()
    values = {line["step"]: line for line in map(msgspec.json.decode, lines)}
    held = values[step + 1]
    assert held["time/paused_s"] > 1000 and values[step + 2]["time/paused_s"] == 0
    for key in ("time/wait_rollout_s", "time/wait_learner_s", "time/step_s"):
        assert held[key] < 1000


async def test_a_pause_before_training_holds_the_first_group(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path)
    bench.coordinator.desk.pause()
    async with playing(bench) as run:
        await asyncio.sleep(0.05)
        assert not bench.actors[0].granted
        bench.coordinator.desk.resume()
        await run
    assert bench.coordinator.steps_done == 6


# -- checkpoints ----------------------------------------------------------------------------------


async def test_a_checkpoint_is_written_after_the_step_in_progress(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client, playing(bench):
        await until(bench, step=2)
        bench.learner.gate.clear()
        await when(lambda: bench.learner.is_held)
        step = bench.coordinator.steps_done + 1
        first = asyncio.create_task(client.post("/checkpoint"))
        second = asyncio.create_task(client.post("/checkpoint"))
        await asyncio.sleep(0.05)
        assert not first.done() and not bench.learner.saved
        bench.learner.gate.set()
        answers = []
        for got in (await first, await second):
            assert got.status == 200
            answers.append(msgspec.json.decode(await got.read(), type=Saved))
        path = tmp_path / "checkpoints" / f"step_{step}"
        assert answers == [Saved(step=step, path=str(path))] * 2
        assert await asyncio.to_thread((path / "DONE").exists)
        assert bench.learner.saved == [str(path)]


async def test_a_paused_run_is_saved_at_once_and_a_saved_step_not_again(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client, playing(bench):
        await until(bench, step=1)
        bench.coordinator.desk.pause()
        await asyncio.sleep(0.05)
        step = bench.coordinator.steps_done
        for _ in range(2):
            async with client.post("/checkpoint") as got:
                assert got.status == 200
                assert msgspec.json.decode(await got.read(), type=Saved).step == step
        assert len(bench.learner.saved) == 1
        bench.coordinator.desk.resume()
        await until(bench, step=step + 2)


async def test_what_cannot_be_saved_is_said(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "learner.steps=1")
    async with served(bench) as client:
        async with client.post("/checkpoint") as got:
            assert got.status == 409
        bench.coordinator.desk.pause()
        async with playing(bench) as run:
            await asyncio.sleep(0.05)
            async with client.post("/checkpoint") as got:
                assert got.status == 409 and "no step is trained yet" in await error_of(got)
            bench.coordinator.desk.resume()
            await run
        async with client.post("/checkpoint") as got:
            assert msgspec.json.decode(await got.read(), type=Saved).step == 1
    assert len(bench.learner.saved) == 1


async def test_whoever_waits_for_a_checkpoint_of_a_run_that_breaks_is_told(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        async with playing(bench):
            await until(bench, step=1)
            bench.learner.gate.clear()
            await when(lambda: bench.learner.is_held)
            asked = asyncio.create_task(client.post("/checkpoint"))
            await asyncio.sleep(0.05)
        async with await asked as got:
            assert got.status == 409 and "the run ended" in await error_of(got)
        async with client.post("/checkpoint") as got:  # nobody is left who could
            assert got.status == 409


def test_the_token_is_not_among_the_arguments_that_others_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        seen.append([*arguments, "|", *sys.argv[1:]])
        return 0

    monkeypatch.setattr(launch, "main", main)
    monkeypatch.setattr(sys, "argv", ["launch.py", "control.token=sesame", "learner.steps=1"])
    with pytest.raises(SystemExit):
        launch.run_script()
    assert seen == [["control.token=sesame", "learner.steps=1", "|", "learner.steps=1"]]
