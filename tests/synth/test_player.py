"""Pass rates by an endpoint and by the embedded engine: wins, losses, and what is neither."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from configs.schema import EnvPoolSection, PoolSection
from envpool.pool import EnvPool
from envpool.source import PoolSource
from envpool.task import Config, Split, Task
from rollout.episode import Limits
from rollout.types import StopReason
from synth.address import NO_KEY
from synth.chat import Chat
from synth.player import Measured, Played, PlayerError, UnmeasuredError, measure, pass_rate
from synth.player_endpoint import EndpointPlayer
from synth.player_local import LocalPlayer
from synth.records import PassRate
from tests.synth.llm_server import Pauses
from tests.synth.scripted_endpoint import (
    Body,
    Script,
    ScriptedEndpoint,
    as_text,
    as_tool_call,
    error,
    oracle_call,
    serve,
    tool_calls,
    wins_with,
)

POLICY = Path(__file__).parents[2] / "configs" / "tiny_policy" / "policy"
BASICS = PoolSection(source="envpool.envs:basics", trusted=True, sessions_per_process=64)
POOLS = EnvPoolSection(step_timeout_s=5.0, start_timeout_s=20.0, max_sessions=16)
LIMITS = Limits(max_turns=12, max_reply_tokens=64, max_context_tokens=10_000, timeout_s=30.0)
NUMBERS: Config = {"numbers": [3, 1, 4]}


@pytest.fixture
async def pool() -> AsyncIterator[EnvPool]:
    async with await EnvPool.start({"basics": BASICS}, limits=POOLS) as pool:
        yield pool


def task(pool: EnvPool, config: Config = NUMBERS, *, env: str = "sum_list", seed: int = 1) -> Task:
    version = pool.versions()["basics"]
    return Task(pool="basics", pool_version=version, env=env, config=config, seed=seed)


async def player(
    pool: EnvPool, endpoint: ScriptedEndpoint, *, limits: Limits = LIMITS, **settings: Any
) -> EndpointPlayer:
    settings = {"key": NO_KEY, "retries": 3, "sleep": Pauses(), **settings}
    chat = await asyncio.to_thread(Chat, url=endpoint.url, section="filters", **settings)
    return EndpointPlayer(chat, "scripted", pool, limits)


async def played(
    pool: EnvPool, script: Script, *, limits: Limits = LIMITS, **settings: Any
) -> tuple[Played, list[Body]]:
    """One episode against a script, and what the endpoint was asked."""
    async with serve(script) as endpoint:
        model = await player(pool, endpoint, limits=limits, **settings)
        try:
            return await model.play(task(pool), 0), endpoint.requests
        finally:
            await model.close()


WON = Played(stop=StopReason.ANSWERED, reward=1.0, calls=5)


async def test_a_model_that_follows_the_oracle_by_tool_calls_wins(pool: EnvPool) -> None:
    found, requests = await played(pool, as_tool_call)
    assert found == WON
    first, last = requests[0], requests[-1]
    assert first["messages"] == [{"role": "user", "content": "Sum all numbers."}]
    assert [tool["function"]["name"] for tool in first["tools"]] == ["length", "get", "done"]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("scripted", 1.0, 64)
    roles = [message["role"] for message in last["messages"]]
    assert roles == ["user", *["assistant", "tool"] * 4]
    assert last["messages"][1]["tool_calls"][0]["id"] == last["messages"][2]["tool_call_id"]
    assert len({request["seed"] for request in requests}) == len(requests)


async def test_a_model_that_writes_calls_as_text_wins(pool: EnvPool) -> None:
    found, requests = await played(pool, as_text)
    assert found == WON
    assert requests[-1]["messages"][2] == {
        "role": "user",
        "content": "<tool_response>\n3\n</tool_response>",
    }


async def test_several_calls_in_one_reply_are_carried_out_in_turn(pool: EnvPool) -> None:
    def script(body: Body) -> Body:
        if len(body["messages"]) == 1:
            return tool_calls(*[("get", {"index": index}) for index in range(3)])
        return tool_calls(("done", {"answer": 8}), ("get", {"index": 0}))

    found, requests = await played(pool, script)
    assert found == Played(stop=StopReason.ANSWERED, reward=1.0, calls=4)
    assert [message["content"] for message in requests[1]["messages"][2:]] == ["3", "1", "4"]


async def test_a_refusal_and_garbage_are_losses(pool: EnvPool) -> None:
    garbage: list[Body] = [
        {"content": None, "refusal": "I will not."},
        {"content": ""},
        {"content": "The sum is 8."},
        {"content": '<tool_call>\n{"name": "get"'},
        tool_calls(("get", "{index: 0")),
        tool_calls(("get", "[1]")),
        tool_calls(("nothing", {})),
    ]
    for said in garbage:
        found, requests = await played(pool, lambda _, said=said: said)
        assert found == Played(stop=StopReason.MAX_TURNS, reward=0.0, calls=12), said
        last = requests[-1]["messages"]
        assert "Error: " in last[-1]["content"]
        for message in last:
            for call in message.get("tool_calls", ()):
                assert call["function"]["arguments"] == "{}"


async def test_calls_are_bounded_also_within_a_reply(pool: EnvPool) -> None:
    calls = [("get", {"index": 0})] * 5
    found, requests = await played(pool, lambda _: tool_calls(*calls))
    assert (found.calls, found.stop, len(requests)) == (12, StopReason.MAX_TURNS, 3)


async def test_a_conversation_that_fills_the_context_is_a_loss(pool: EnvPool) -> None:
    def script(body: Body) -> Body | web.Response:
        if len(body["messages"]) > 3:
            return error(400, "This model's maximum context length is 9 tokens.")
        return tool_calls(("get", {"index": 0}))

    found, requests = await played(pool, script)
    assert found == Played(stop=StopReason.CONTEXT_FULL, reward=0.0, calls=2)
    assert len(requests) == 3
    # The endpoint counts tokens too, and has no such bound of its own.
    limits = Limits(max_turns=12, max_reply_tokens=64, max_context_tokens=100, timeout_s=30.0)
    found, requests = await played(pool, lambda _: tool_calls(("get", {"index": 0})), limits=limits)
    assert (found.stop, found.reward) == (StopReason.CONTEXT_FULL, 0.0)
    assert 1 < found.calls < 12


async def test_a_first_request_that_does_not_fit_is_no_loss(pool: EnvPool) -> None:
    script = error(400, "max_tokens is too large: the maximum context length is 9 tokens.")
    found, _ = await played(pool, lambda _: clone(script))
    assert (found.stop, found.reward) == (StopReason.ENGINE_ERROR, None)
    assert "maximum context length" in found.error


def clone(response: web.Response) -> web.Response:
    """A response can be sent once."""
    return web.Response(body=response.body, status=response.status, content_type="application/json")


FLAWS = [
    lambda: error(429, "slow down"),
    lambda: error(500, "oops"),
    lambda: error(503, "overloaded"),
    lambda: web.Response(text="<html>"),
    lambda: web.json_response({"choices": []}),
    lambda: web.json_response({"choices": [{"message": {"tool_calls": [{"function": 3}]}}]}),
]


async def test_an_endpoint_that_fails_now_and_then_loses_nothing(pool: EnvPool) -> None:
    failed: list[int] = []

    def script(body: Body) -> Body | web.Response:
        length = len(body["messages"])
        if failed.count(length) < 3:
            failed.append(length)
            return FLAWS[len(failed) % len(FLAWS)]()
        return as_tool_call(body)

    found, requests = await played(pool, script)
    assert found == WON
    assert len(requests) == 5 * 4
    # No try is part of the conversation.
    assert len(requests[-1]["messages"]) == 9


async def test_an_endpoint_that_goes_on_failing_measures_nothing(pool: EnvPool) -> None:
    for flaw in FLAWS:
        found, requests = await played(pool, lambda _, flaw=flaw: flaw())
        assert (found.stop, found.reward, found.calls) == (StopReason.ENGINE_ERROR, None, 0)
        assert "the endpoint failed 4 tries" in found.error
        assert len(requests) == 4


async def test_an_endpoint_that_does_not_answer_measures_nothing(pool: EnvPool) -> None:
    async with serve(as_tool_call) as endpoint:
        gone = await player(pool, endpoint, retries=1)
    found = await gone.play(task(pool), 0)
    await gone.close()
    assert (found.stop, found.reward) == (StopReason.ENGINE_ERROR, None)
    assert "failed 2 tries, last with: no connection" in found.error


async def test_an_episode_that_takes_too_long_measures_nothing(pool: EnvPool) -> None:
    limits = Limits(max_turns=12, max_reply_tokens=64, max_context_tokens=999, timeout_s=0.2)
    script = error(500, "oops")
    found, _ = await played(
        pool, lambda _: clone(script), limits=limits, sleep=asyncio.sleep, retries=9
    )
    assert (found.stop, found.reward) == (StopReason.TIMEOUT, None)
    assert "longer than 0.2 s" in found.error


@pytest.mark.parametrize(
    ("status", "text", "cure"),
    [
        (401, "bad key sk-secret", "filters.key_env"),
        (404, "no such model", "filters.base_url"),
        (400, "unknown field", "see what it says"),
        (429, "insufficient_quota", "quota"),
    ],
)
async def test_what_no_further_try_can_cure_ends_the_measurement(
    pool: EnvPool, status: int, text: str, cure: str
) -> None:
    async with serve(lambda _: error(status, text)) as endpoint:
        model = await player(pool, endpoint, key="sk-secret")
        with pytest.raises(PlayerError, match=cure) as caught:
            await measure(model, [task(pool)] * 2, 4, concurrency=2)
        await model.close()
        assert set(endpoint.keys) == {"Bearer sk-secret"}
    assert "sk-secret" not in str(caught.value)
    assert f"answered {status}" in str(caught.value)


async def test_a_pass_rate_is_the_share_of_samples_won(pool: EnvPool) -> None:
    tasks = [task(pool, {"numbers": [number, 2]}, seed=number) for number in range(1, 4)]
    found = []
    for _ in range(2):
        async with serve(wins_with(0.5)) as endpoint:
            model = await player(pool, endpoint)
            found.append(await measure(model, tasks, 8, concurrency=3))
            await model.close()
            assert 1 < endpoint.most_running <= 3
    # A sample has a stream of its own, which is the same the next time.
    assert found[0] == found[1]
    assert [one.task_id for one in found[0]] == [one.id for one in tasks]
    rates = [one.pass_rate for one in found[0]]
    assert all(rate is not None and rate.samples == 8 for rate in rates)
    assert 4 < sum(rate.won for rate in rates if rate is not None) < 20
    assert len({tuple(p.reward for p in one.played) for one in found[0]}) > 1


async def test_a_sample_that_failed_is_played_again(pool: EnvPool) -> None:
    failures = iter(range(4))

    def script(body: Body) -> Body | web.Response:
        # The second reply of the first two episodes fails, once for good.
        if len(body["messages"]) == 3 and next(failures, None) is not None:
            return error(500, "oops")
        return as_tool_call(body)

    async with serve(script) as endpoint:
        model = await player(pool, endpoint, retries=1)
        [found] = await measure(model, [task(pool)], 2, concurrency=1, tries=3)
        assert found.unmeasured == 0
        assert found.pass_rate == PassRate(model="scripted", won=2, samples=2)
        assert await pass_rate(model, task(pool), 1) == PassRate(model="scripted", won=1, samples=1)
        await model.close()


async def test_what_could_not_be_measured_is_no_part_of_the_rate(pool: EnvPool) -> None:
    def script(body: Body) -> Body | web.Response:
        name, _ = oracle_call(body)
        if name == "done" and Random(body["seed"]).random() < 0.5:
            return error(500, "oops")
        return as_tool_call(body)

    async with serve(script) as endpoint:
        model = await player(pool, endpoint, retries=0)
        [found] = await measure(model, [task(pool)], 12, concurrency=4)
        assert 0 < found.unmeasured < 12
        rate = found.pass_rate
        assert rate is not None
        assert (rate.won, rate.rate) == (12 - found.unmeasured, 1.0)
        assert "500" in found.failure
        endpoint.script = lambda _: error(500, "oops")
        with pytest.raises(UnmeasuredError, match=r"no sample of basics/sum_list/.* 500"):
            await pass_rate(model, task(pool), 2)
        await model.close()


async def test_a_task_that_does_not_open_is_no_loss(pool: EnvPool) -> None:
    async with serve(as_tool_call) as endpoint:
        model = await player(pool, endpoint)
        [found] = await measure(model, [task(pool, {"numbers": []})], 2, concurrency=1)
        await model.close()
    assert (found.pass_rate, found.unmeasured) == (None, 2)
    assert found.played[0].stop is StopReason.ENV_ERROR
    assert "length >= 1" in found.failure


async def test_a_varied_task_is_played_with_its_tools(pool: EnvPool) -> None:
    config = {**NUMBERS, "variation": {"rename": {"get": {"name": "read_item"}}}}

    def script(body: Body) -> Body:
        name, arguments = oracle_call(body)
        return tool_calls((name.replace("get", "read_item"), arguments))

    async with serve(script) as endpoint:
        model = await player(pool, endpoint)
        assert (await pass_rate(model, task(pool, config), 1)).won == 1
        names = [tool["function"]["name"] for tool in endpoint.requests[0]["tools"]]
        assert names == ["length", "read_item", "done"]
        await model.close()


async def test_the_embedded_engine_measures_the_shipped_policy(pool: EnvPool) -> None:
    source = await asyncio.to_thread(PoolSource.load, "basics", BASICS)
    rng = Random(0)
    tasks = [
        task(pool, source.draw("sum_list", rng, Split.TRAIN), seed=number) for number in range(6)
    ]
    limits = Limits(max_turns=12, max_reply_tokens=16, max_context_tokens=320, timeout_s=60.0)
    model = await LocalPlayer.start(POLICY, pool, limits)
    try:
        found = [await measure(model, tasks, 8, concurrency=16) for _ in range(2)]
    finally:
        await model.close()
    one, other = (won(measured) for measured in found)
    assert 0 < sum(one) < len(one) == 48
    rates = [measured.pass_rate for measured in found[0]]
    assert any(rate is not None and 0 < rate.won < 8 for rate in rates)
    # A sample has a stream of its own; what else is computed with it may change the last bit of a number.
    assert sum(a == b for a, b in zip(one, other, strict=True)) >= 47
    assert all(one.unmeasured == 0 for one in found[0])
    # Nobody is left to play: that is no loss.
    [after] = await measure(model, tasks[:1], 2, concurrency=2)
    assert (after.unmeasured, after.pass_rate) == (2, None)
    assert "closed" in after.failure


def won(found: list[Measured]) -> list[bool]:
    return [played.is_won for one in found for played in one.played]


async def test_a_directory_without_a_model_is_said(pool: EnvPool, tmp_path: Path) -> None:
    with pytest.raises(PlayerError, match="cannot be played"):
        await LocalPlayer.start(tmp_path, pool, LIMITS)
