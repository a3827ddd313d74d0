"""Pools that come and go while a run trains, over HTTP, in front of a coordinator between fakes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec
import pytest

from configs.load import load
from configs.schema import ControlSection
from envpool.source import PoolSource
from envpool.task import PoolKey, Split
from rollout import audit, pools
from rollout.control import serve
from rollout.curriculum import Draw
from rollout.evaluate import Evaluation
from rollout.ledger import GroupState
from rollout.pools import PoolState
from rollout.status import PoolInfo
from rollout.types import Grant
from tests.coordinating import Bench, make_bench, playing, until, when
from tests.fakes import FakeActor, alternating, make_task
from tests.recipes import BASICS

LONG = ("learner.steps=100000", "checkpoint.every=0", "rollout.group_size=2")
ONE = {"name": "mine", "source": "tests.other_pools:one", "trusted": True}
TWO = {**ONE, "source": "tests.other_pools:two"}
APART = {**ONE, "source": "tests.other_pools:apart"}
MIXED = {**ONE, "source": "tests.other_pools:mixed"}


@asynccontextmanager
async def served(bench: Bench) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a run that goes on, and has begun to train."""
    async with (
        serve(bench.run_dir, section=ControlSection(), desk=bench.coordinator.desk) as url,
        aiohttp.ClientSession(url) as client,
        playing(bench),
    ):
        await until(bench, step=1)
        yield client


async def ask(
    client: aiohttp.ClientSession, method: str, path: str, body: Any = None, *, status: int = 200
) -> Any:
    """The decoded answer; the error of one that is refused."""
    async with client.request(method, path, json=body) as got:
        found = msgspec.json.decode(await got.read())
        assert got.status == status, found
        return found if status == 200 else found["error"]


async def listed(client: aiohttp.ClientSession) -> dict[str, PoolInfo]:
    """Every version, by `name` and state."""
    found = msgspec.convert(await ask(client, "GET", "/pools"), list[PoolInfo])
    return {f"{info.name} {info.state}": info for info in found}


def trained_pools(bench: Bench) -> Counter[str]:
    return Counter(group.pool for batch in bench.learner.batches for group in batch.groups)


async def check_balance(bench: Bench) -> None:
    live = bench.coordinator.ledger.counts()
    assert await asyncio.to_thread(audit.recompute, bench.run_dir) == live
    assert bench.coordinator.ledger.live == 0


async def written(bench: Bench) -> set[tuple[str, str]]:
    found = await asyncio.to_thread(pools.read, bench.run_dir)
    assert found is not None
    return {(record.name, str(record.state)) for record in found.pools}


async def test_an_added_pool_is_drawn_from_and_trained_on(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        assert await written(bench) == {("basics", "live")}
        info = msgspec.convert(await ask(client, "POST", "/pools", {**ONE, "weight": 3}), PoolInfo)
        assert (info.name, info.state, info.weight, info.train) == ("mine", "live", 3, ["sum_list"])
        assert await written(bench) == {("basics", "live"), ("mine", "live")}
        await when(lambda: trained_pools(bench)["mine"] > 20)
        assert set(await listed(client)) == {"basics live", "mine live"}
    rows = await bench.rows()
    mine = [row for row in rows if row.pool == "mine" and row.state is GroupState.TRAINED]
    assert mine and {row.pool_version for row in mine} == {info.version}
    after = [row for row in rows if row.group_id >= min(one.group_id for one in mine)]
    share = sum(row.pool == "mine" for row in after) / len(after)
    assert 0.6 < share < 0.9
    await check_balance(bench)
    events = await asyncio.to_thread(lambda: list(audit.events(tmp_path, "pool")))
    assert [(event["name"], event["state"]) for event in events] == [("mine", "live")]


async def test_a_pool_that_one_actor_refuses_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    actors = [FakeActor("actor-0"), FakeActor("actor-1")]
    actors[1].refusal = "pools.mine.source='x': no module"
    bench = await make_bench(tmp_path, *LONG, actors=actors)
    async with served(bench) as client:
        before = await ask(client, "GET", "/pools")
        words = await ask(client, "POST", "/pools", ONE, status=400)
        assert "no module" in words and "actor-1" in words
        assert [len(actor.retired) for actor in actors] == [1, 0]
        assert len(await ask(client, "GET", "/pools")) == len(before) == 1
        assert await written(bench) == {("basics", "live")}
        await until(bench, step=bench.coordinator.steps_done + 3)
    assert set(trained_pools(bench)) == {"basics"}


async def test_a_pool_without_anything_to_train_on_is_taken_back(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        body = {**ONE, "source": "tests.other_pools:constant"}
        words = await ask(client, "POST", "/pools", body, status=400)
        assert "no train configuration" in words
        words = await ask(client, "POST", "/pools", {**ONE, "train": ["sun_list"]}, status=400)
        assert "did you mean sum_list" in words
        assert len(bench.actors[0].retired) == 2 and not bench.actors[0].served
        assert set(await listed(client)) == {"basics live"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "must be a JSON object"),
        ({"source": "a:b"}, "name=None must be a text"),
        ({"name": "a/b", "source": "a:b"}, "name='a/b' must be a text of letters"),
        ({"name": "mine"}, "pools.mine.source is missing"),
        ({**ONE, "wieght": 1}, "pools.mine.wieght is not known; did you mean weight?"),
        ({**ONE, "weight": -1}, "pools.mine.weight=-1 must be a number > 0 (Share of tasks"),
        ({**ONE, "replace": "yes"}, "replace='yes' must be true or false"),
        ({**ONE, "trusted": False, "sessions_per_process": 4}, "set trusted=true if you trust it"),
    ],
)
async def test_a_wrong_body_is_named(tmp_path: Path, body: object, words: str) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        assert words in await ask(client, "POST", "/pools", body, status=400)
        assert not bench.actors[0].served


async def test_a_body_that_is_not_json_is_refused(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client, client.post("/pools", data=b"{") as got:
        assert got.status == 400 and b"not JSON" in await got.read()


async def test_what_cannot_be_done_as_things_stand_is_said(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        words = await ask(client, "DELETE", "/pools/basics", status=409)
        assert "last pool to train on: add another" in words
        words = await ask(client, "DELETE", "/pools/mine", status=404)
        assert "there are basics" in words
        await ask(client, "POST", "/pools", {**ONE, "replace": True}, status=404)
        # Two at once: one after the other, so that the second finds the first.
        body = {**TWO, "name": "both"}
        both = [client.post("/pools", json=one) for one in (body, body)]
        codes = sorted([got.status for got in await asyncio.gather(*both)])
        assert codes == [200, 409]
        assert "already" in await ask(client, "POST", "/pools", body, status=409)


async def test_nothing_is_added_once_training_is_over(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, "learner.steps=1")
    async with served(bench) as client:
        await ask(client, "POST", "/pools", ONE, status=409)


class Held:
    """The first group of a pool that never ends by itself."""

    def __init__(self, pool: str) -> None:
        self.pool = pool
        self.group_id = ""

    def __call__(self, grant: Grant, member: int) -> float | None:
        if grant.task.pool == self.pool and not self.group_id:
            self.group_id = grant.group_id
        return None if grant.group_id == self.group_id else alternating(grant, member)


async def test_a_replaced_version_finishes_its_groups_and_then_goes(tmp_path: Path) -> None:
    held = Held("mine")
    actor = FakeActor(verdict=held)
    bench = await make_bench(tmp_path, *LONG, "rollout.max_lag=50", actors=[actor])
    async with served(bench) as client:
        first = msgspec.convert(await ask(client, "POST", "/pools", ONE), PoolInfo)
        await when(lambda: held.group_id != "")
        second = await ask(client, "POST", "/pools", {**TWO, "replace": True})
        assert second["version"] != first.version
        num_granted = len(actor.granted)
        await when(lambda: len(actor.granted) > num_granted + 5)
        bench.learner.gate.clear()  # else the group is too late before it is looked at
        found = await listed(client)
        assert set(found) == {"basics live", "mine draining", "mine live"}
        assert found["mine draining"].groups_live >= 1 and not actor.retired
        new = [grant.task for grant in actor.granted[num_granted:]]
        assert {task.pool_version for task in new if task.pool == "mine"} == {second["version"]}
        assert ("mine", "draining") in await written(bench)
        actor.end_one(held.group_id)
        bench.learner.gate.set()
        await when(lambda: bool(actor.retired))
        assert actor.retired == [PoolKey("mine", first.version)]
        assert set(await listed(client)) == {"basics live", "mine removed", "mine live"}
        assert ("mine", "draining") not in await written(bench)
    (state,) = {row.state for row in await bench.rows() if row.group_id == held.group_id}
    assert state in (GroupState.TRAINED, GroupState.CANCELLED)
    await check_balance(bench)


async def test_the_same_code_changes_its_weight_and_nothing_else(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        first = await ask(client, "POST", "/pools", ONE)
        again = {**ONE, "replace": True}
        second = await ask(client, "POST", "/pools", {**again, "weight": 2})
        assert (second["version"], second["weight"]) == (first["version"], 2)
        words = await ask(client, "POST", "/pools", {**again, "trusted": False}, status=409)
        assert "only weight and train can change" in words
        # It would be trained on and evaluated at once.
        words = await ask(client, "POST", "/pools", {**again, "split": "eval"}, status=409)
        assert "split='train' holds" in words and not bench.coordinator._evaluation_sets
        # It is served as before: nothing was taken from it.
        assert not bench.actors[0].retired
        assert set(await listed(client)) == {"basics live", "mine live"}


async def test_requeued_tasks_of_a_removed_pool_end_as_cancelled(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    coordinator = bench.coordinator
    async with served(bench) as client:
        info = msgspec.convert(await ask(client, "POST", "/pools", ONE), PoolInfo)
        coordinator.desk.pause()
        key = PoolKey("mine", info.version)
        task = msgspec.structs.replace(make_task(pool_version=key.version), pool="mine")
        coordinator._curriculum.requeue(Draw(task=task, attempt=1))
        created, cancelled = coordinator._queue.next_id, coordinator.ledger[GroupState.CANCELLED]
        assert (await ask(client, "DELETE", "/pools/mine"))["state"] == "draining"
        assert coordinator._queue.next_id == created + 1
        assert coordinator.ledger[GroupState.CANCELLED] == cancelled + 1
        assert not coordinator._curriculum.requeued
        coordinator.desk.resume()
        await when(lambda: not coordinator._pools.records()[1:])
        assert bench.actors[0].retired == [key]
        await ask(client, "DELETE", "/pools/mine", status=404)
        granted = len(bench.actors[0].granted)
        await until(bench, step=coordinator.steps_done + 5)
        assert {grant.task.pool for grant in bench.actors[0].granted[granted:]} == {"basics"}
    (row, *others) = [r for r in await bench.rows() if r.group_id == f"g{created:06d}"]
    assert row.state is GroupState.CANCELLED and len(others) == row.group_size - 1
    await check_balance(bench)


async def test_a_version_that_evaluation_needs_stays(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    (key,) = [version.key for version in bench.coordinator._pools.versions]
    task = make_task(pool_version=key.version, number=1)
    bench = await make_bench(
        tmp_path / "run", *LONG, "eval.before=false", evaluation_sets={"fresh": [task]}
    )
    async with served(bench) as client:
        await ask(client, "POST", "/pools", ONE)
        await ask(client, "DELETE", "/pools/basics")
        await until(bench, step=bench.coordinator.steps_done + 20)
        found = await listed(client)
        assert found["basics draining"].is_evaluated and not found["basics draining"].groups_live
        assert not bench.actors[0].retired


async def test_a_version_that_evaluation_needs_no_more_goes(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    (key,) = [version.key for version in bench.coordinator._pools.versions]
    sets = {"basics": [make_task(pool_version=key.version, number=1)]}
    bench = await make_bench(tmp_path / "run", *LONG, "eval.before=false", evaluation_sets=sets)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", ONE)
        body = {**TWO, "name": "basics", "replace": True, "split": "eval"}
        info = msgspec.convert(await ask(client, "POST", "/pools", body), PoolInfo)
        await when(lambda: bench.actors[0].retired == [key])
        assert info.is_evaluated and (await listed(client))["basics live"].is_evaluated


async def test_a_version_that_is_being_evaluated_stays_until_that_is_over(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", {**ONE, "split": "eval"})
        coordinator = bench.coordinator
        # As an evaluation that is under way; it shares nothing with the sets of the next one.
        coordinator._feed.evaluation = Evaluation(dict(coordinator._evaluation_sets), "before")
        await ask(client, "DELETE", "/pools/mine")
        for _ in range(100):  # what drains is looked at on each news
            coordinator._pools._news.set()
            await asyncio.sleep(0)
        assert (await listed(client))["mine draining"].is_evaluated
        assert not bench.actors[0].retired
        coordinator._feed.evaluation = None
        coordinator._pools.put_evaluated(coordinator._evaluated())
        await when(lambda: bool(bench.actors[0].retired))


async def test_a_pool_may_come_back(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", ONE)
        await ask(client, "DELETE", "/pools/mine")
        await when(lambda: bool(bench.actors[0].retired))
        before = trained_pools(bench)["mine"]
        await ask(client, "POST", "/pools", ONE)
        await when(lambda: trained_pools(bench)["mine"] > before)
        assert set(await listed(client)) == {"basics live", "mine live"}


async def test_records_say_what_there_is(tmp_path: Path) -> None:
    assert await asyncio.to_thread(pools.read, tmp_path) is None
    await asyncio.to_thread((tmp_path / "pools.json").write_bytes, b"{}")
    with pytest.raises(ValueError, match=r"pools\.json is damaged"):
        await asyncio.to_thread(pools.read, tmp_path)
    assert str(PoolState.LIVE) == "live"


async def test_a_pool_may_be_for_evaluation_alone(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", {**ONE, "split": "eval"})
        sets = bench.coordinator._evaluation_sets
        assert set(sets) == {"mine"} and {task.split for task in sets["mine"]} == {Split.EVAL}
        words = await ask(client, "DELETE", "/pools/basics", status=409)
        assert "last pool to train on" in words
        await until(bench, step=bench.coordinator.steps_done + 20)
        assert set(trained_pools(bench)) == {"basics"}
        await ask(client, "DELETE", "/pools/mine")
        assert not bench.coordinator._evaluation_sets
        await when(lambda: bool(bench.actors[0].retired))


def sides_of(bench: Bench, name: str = "mine") -> dict[str, set[Split]]:
    """The splits of a set's configurations, by environment."""
    tasks = bench.coordinator._evaluation_sets[name]
    return {env: {t.split for t in tasks if t.env == env} for env in {t.env for t in tasks}}


async def test_only_what_is_never_trained_on_is_evaluated_whole(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", {**MIXED, "split": "eval"})
        assert sides_of(bench) == {"price_total": set(Split), "sum_list": {Split.EVAL}}


async def test_what_is_evaluated_whole_is_not_trained_on(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    other = {**MIXED, "name": "other", "train": ["sum_list"]}
    async with served(bench) as client:
        await ask(client, "POST", "/pools", other)
        await ask(client, "POST", "/pools", {**MIXED, "split": "eval"})
        before = sides_of(bench)
        # A new pool, and one that is trained on already.
        for body in ({**APART, "name": "late"}, {**other, "train": [], "replace": True}):
            words = await ask(client, "POST", "/pools", body, status=409)
            for part in (
                f"pool {body['name']!r}",
                "'price_total'",
                "set 'mine'",
                "remove pool 'mine'",
            ):
                assert part in words
        assert [key.name for key in bench.actors[0].retired] == ["late"]
        assert sides_of(bench) == before
        assert set(await listed(client)) == {"basics live", "other live", "mine live"}
        assert (await listed(client))["other live"].train == ["sum_list"]
        # Of an id that is trained on already there are configurations that nobody evaluates.
        await ask(client, "POST", "/pools", ONE | {"name": "late"})


async def test_what_was_once_trained_on_is_never_evaluated_whole(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", {**APART, "split": "eval"})
        assert sides_of(bench) == {"price_total": set(Split)}
        await ask(client, "DELETE", "/pools/mine")
        await ask(client, "POST", "/pools", {**APART, "name": "late"})
        await ask(client, "DELETE", "/pools/late")
        await when(lambda: len(bench.actors[0].retired) == 2)
        await ask(client, "POST", "/pools", {**APART, "split": "eval"})
        assert sides_of(bench) == {"price_total": {Split.EVAL}}
        found = await asyncio.to_thread(pools.read, bench.run_dir)
        assert found is not None and "price_total" in (found.trained or ())


async def test_a_pool_for_evaluation_can_be_replaced_by_one_to_train_on(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", {**APART, "split": "eval"})
        # Its set goes with it.
        await ask(client, "POST", "/pools", {**MIXED, "replace": True})
        assert not bench.coordinator._evaluation_sets
        await when(lambda: trained_pools(bench)["mine"] > 3)


async def test_what_is_evaluated_on_its_split_alone_may_be_trained_on(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    source = bench.coordinator._pools.live("basics").source
    assert "price_total" not in source.train
    config = source.draw("price_total", Random(0), Split.EVAL)
    sets = {"unseen": [source.task("price_total", config, seed=0)]}
    settings = [*LONG, "eval.before=false"]
    bench = await make_bench(tmp_path / "run", *settings, evaluation_sets=sets)
    async with served(bench) as client:
        await ask(client, "POST", "/pools", APART)
        await when(lambda: trained_pools(bench)["mine"] > 3)


async def test_a_set_of_another_name_stays_and_so_does_what_it_is_about(tmp_path: Path) -> None:
    pool = ["source=tests.other_pools:apart", "trusted=true", "split=eval"]
    settings = [*LONG, "eval.before=false", *(f"pools.mine.{one}" for one in pool)]
    config = await asyncio.to_thread(load, [BASICS, *settings])
    source = await asyncio.to_thread(PoolSource.load, "mine", config.pools["mine"])
    task = source.task("price_total", source.draw("price_total", Random(0), None), seed=0)
    bench = await make_bench(tmp_path, *settings, evaluation_sets={"unseen": [task]})
    async with served(bench) as client:
        words = await ask(client, "POST", "/pools", {**MIXED, "replace": True}, status=409)
        assert "set 'unseen'" in words and "remove pool" not in words
        assert "run of its own" in words


async def test_a_set_of_the_run_is_not_taken_over(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    name = next(iter(bench.config.eval.sets))
    async with served(bench) as client:
        body = {**ONE, "name": name, "split": "eval"}
        assert "choose another name" in await ask(client, "POST", "/pools", body, status=409)
        assert not bench.coordinator._evaluation_sets
        assert set(await listed(client)) == {"basics live"}


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b"[" * 100_000])
async def test_a_body_that_is_no_text_or_too_deep_is_refused(tmp_path: Path, body: bytes) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client, client.post("/pools", data=body) as got:
        assert got.status == 400 and "not JSON" in (await got.json())["error"]


async def test_the_only_pool_cannot_become_one_for_evaluation(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    async with served(bench) as client:
        body = {**ONE, "name": "basics", "replace": True, "split": "eval"}
        assert "last pool to train on" in await ask(client, "POST", "/pools", body, status=409)
        await ask(client, "POST", "/pools", ONE)
        await ask(client, "POST", "/pools", body)
        # The version that was trained on goes; the other one is served, and evaluated on.
        await when(lambda: len(bench.actors[0].retired) == 1)
        assert set(bench.coordinator._evaluation_sets) == {"basics"}
        before = trained_pools(bench)
        await when(lambda: trained_pools(bench)["mine"] > before["mine"] + 3)
        assert trained_pools(bench)["basics"] == before["basics"]


async def test_a_refused_pool_takes_no_kept_text_with_it(tmp_path: Path) -> None:
    bench = await make_bench(tmp_path, *LONG)
    kept, other = bench.run_dir / "pools" / "mine-1", tmp_path / "other"
    for folder in (kept, other):
        await asyncio.to_thread(folder.mkdir, parents=True)
        await asyncio.to_thread((folder / "mine.py").write_text, "")
    bench.actors[0].refusal = "no"
    async with served(bench) as client:
        for source in (str(kept), f"{bench.run_dir}/pools/../other", str(other)):
            await ask(client, "POST", "/pools", {"name": "mine", "source": source}, status=400)
    here = [kept / "mine.py", other / "mine.py"]
    assert await asyncio.to_thread(lambda: all(path.exists() for path in here))
    assert await asyncio.to_thread(lambda: len(list((bench.run_dir / "pools").iterdir()))) == 1
