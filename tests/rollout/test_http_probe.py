"""What servers are refused for, and how long one that fails is asked again."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.load import ConfigError, load
from configs.schema import EngineSection, HttpSection
from rollout.engine import EngineError, EngineStop, UpdateMode
from rollout.engine_http import HttpEngine
from rollout.engines import check_engine, start_engine
from rollout.types import Sampling
from rollout.weights import Manifest, WeightsError
from tests.servers import TableServer, free_port

MODES = list(UpdateMode)
Start = Callable[..., Coroutine[Any, Any, HttpEngine]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's directory, of which a table server reads nothing."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 16}))
    header = json.dumps({"table": {"dtype": "F32", "shape": [16, 16], "data_offsets": [0, 1024]}})
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(1024)
    (tmp_path / "model.safetensors").write_bytes(data)
    return tmp_path


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """What starts engines; they are closed in the end."""
    async with AsyncExitStack() as engines:

        async def one(
            server: TableServer, path: Path, *, updates: bool = False, **http: Any
        ) -> HttpEngine:
            options = HttpSection(urls=[server.url], **{"retry_s": 5.0, **http})
            engine = await HttpEngine.start(
                path,
                url=server.url,
                section=EngineSection(kind="http", http=options),
                max_context_tokens=32,
                needs_updates=updates,
            )
            engines.push_async_callback(engine.close)
            return engine

        yield one


async def refusal(start: Start, server: TableServer, path: Path, **more: Any) -> str:
    async with server:
        with pytest.raises(EngineError) as caught:
            await start(server, path, **more)
    assert server.url in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (TableServer(has_ids=False), "returns no token ids"),
        (TableServer(has_ids=False, has_generate=False), "returns no token ids"),
        (TableServer(logprobs="raw"), "--logprobs-mode processed_logprobs"),
        (TableServer(logprobs="raw", has_generate=False), "--logprobs-mode processed_logprobs"),
        (TableServer(logprobs="logits"), "are logits"),
        (TableServer(is_stable=False), "what shares requests out to several"),
        (TableServer(max_len=31), "--max-model-len 32"),
        (TableServer(key="secret"), "engine.http.api_key_env"),
        (TableServer(failures=[400, 400]), "answered 'no'"),
        (TableServer(has_generate=False, failures=[422]), "does not take token ids"),
    ],
)
async def test_a_server_is_refused_with_the_cure(
    start: Start, server: TableServer, said: str, model: Path
) -> None:
    assert said in await refusal(start, server, model)


async def test_a_model_that_is_not_served_is_refused(start: Start, model: Path) -> None:
    assert "engine.http.model" in await refusal(start, TableServer(), model, model="another")


@pytest.mark.parametrize("control", [None, {"init_weight_transfer_engine": "no such backend"}])
async def test_a_server_with_fixed_weights_is_evaluated_and_not_trained(
    start: Start, model: Path, control: dict[str, Any] | None
) -> None:
    server = TableServer(control=control)
    assert "VLLM_SERVER_DEV_MODE=1" in await refusal(start, server, model, updates=True)
    server.port = 0
    async with server:
        engine = await start(server, model)
        reply = await engine.generate([1, 2], Sampling(max_tokens=4))
        assert [(one.version, one.start, one.end) for one in reply.spans] == [(0, 0, 4)]
        with pytest.raises(EngineError, match="weights are fixed"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)
        server.version = "other"
        with pytest.raises(EngineError, match="somebody gave the server the weights"):
            await engine.generate([1, 2], Sampling(max_tokens=4))


@pytest.mark.parametrize("has_generate", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
async def test_a_reply_is_what_the_server_sampled(
    start: Start, model: Path, temperature: float, has_generate: bool
) -> None:
    async with TableServer(has_generate=has_generate) as server:
        engine = await start(server, model)
        sampling = Sampling(max_tokens=99, temperature=temperature, stop_token_ids=(7,))
        reply = await engine.generate([1, 2], sampling)
        before = [2, *reply.token_ids[:-1]]
        expected = [
            server.said(i, temperature)[j] for i, j in zip(before, reply.token_ids, strict=True)
        ]
        np.testing.assert_allclose(reply.logprobs, expected, rtol=1e-6)
        asked = server.asked[-1]
        assert asked.get("sampling_params", asked)["max_tokens"] == 30  # to the end of the context
        assert len(reply.token_ids) == 30 or reply.token_ids[-1] == 7
        assert (reply.stop is EngineStop.STOP) == (reply.token_ids[-1] == 7)


async def test_priorities_are_sent_where_the_server_takes_them(start: Start, model: Path) -> None:
    for takes in (True, False):
        async with TableServer(has_priority=takes) as server:
            engine = await start(server, model)
            await engine.generate([1, 2], Sampling(max_tokens=1), priority=-3)
            assert server.asked[-1]["priority"] == (-3 if takes else 0)
            assert "seed" not in server.asked[-1]["sampling_params"]


async def test_a_stop_that_was_not_asked_for_is_an_error(start: Start, model: Path) -> None:
    async with TableServer() as server:
        engine = await start(server, model)
        server.extra_stop = int(server.said(2, 0).argmax())
        with pytest.raises(EngineError, match="--generation-config vllm"):
            await engine.generate([1, 2], Sampling(max_tokens=4, temperature=0))


async def test_the_key_comes_from_the_environment_and_is_not_shown(
    start: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TableServer(key="s3cret") as server:
        with pytest.raises(EngineError, match="api_key_env='MILLRACE_TEST_KEY'"):
            await start(server, model, api_key_env="MILLRACE_TEST_KEY")
        monkeypatch.setenv("MILLRACE_TEST_KEY", "wr0ng")
        with pytest.raises(EngineError) as caught:
            await start(server, model, api_key_env="MILLRACE_TEST_KEY")
        assert "wr0ng" not in str(caught.value)
        monkeypatch.setenv("MILLRACE_TEST_KEY", "s3cret")
        await start(server, model, api_key_env="MILLRACE_TEST_KEY")


@pytest.mark.parametrize("failures", [[503, 429, 500], [0, 0], [502, 0, 504]])
async def test_what_may_pass_is_tried_again(start: Start, model: Path, failures: list[int]) -> None:
    async with TableServer() as server:
        engine = await start(server, model)
        server.failures = list(failures)
        reply = await engine.generate([1, 2], Sampling(max_tokens=4))
        assert len(reply.token_ids) == 4
        assert not server.failures


async def test_a_pause_that_the_server_asks_for_ends_with_the_deadline(
    start: Start, model: Path
) -> None:
    async with TableServer(retry_after="3600") as server:
        engine = await start(server, model, retry_s=0.2)
        server.failures = [429] * 3
        with pytest.raises(EngineError, match=r"engine\.http\.retry_s=0\.2.*tried"):
            await engine.generate([1, 2], Sampling(max_tokens=4))
        assert server.failures == [429]  # at once, and once more at the end


async def test_what_does_not_pass_is_not_tried_again(start: Start, model: Path) -> None:
    async with TableServer() as server:
        engine = await start(server, model)
        server.failures = [400, 400]
        with pytest.raises(EngineError, match="status 400"):
            await engine.generate([1, 2], Sampling(max_tokens=4))
        assert server.failures == [400]


async def test_a_server_that_is_not_there_is_named(start: Start, model: Path) -> None:
    server = TableServer(port=free_port())
    with pytest.raises(EngineError, match=rf"{server.url}: .*see that the server runs"):
        await start(server, model, retry_s=0.2)


async def test_a_server_that_comes_late_is_waited_for(start: Start, model: Path) -> None:
    server = TableServer(port=free_port())
    starting = asyncio.create_task(start(server, model, retry_s=30.0))
    await asyncio.sleep(0)
    async with server:
        await starting


async def test_closing_ends_what_runs_as_aborted(start: Start, model: Path) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, retry_s=30.0)
        server.failures = [503] * 1000
        running = [
            asyncio.create_task(engine.generate([1], Sampling(max_tokens=1))) for _ in range(3)
        ]
        await server.until(lambda: len(server.failures) < 990)
        await engine.close()
        assert {(await one).stop for one in running} == {EngineStop.ABORTED}
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await engine.generate([1], Sampling(max_tokens=1))


def published(version: int) -> Manifest:
    return Manifest(version=version, step=version, path="/nowhere", num_bytes=0, checksum="")


@pytest.mark.parametrize("mode", MODES)
async def test_an_update_pauses_loads_and_goes_on(
    start: Start, model: Path, mode: UpdateMode
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        assert server.version == "0"
        server.calls.clear()
        await engine.update_weights(published(3), mode)
        assert server.calls == [
            "pause",
            "start_weight_update",
            "update_weights",
            "finish_weight_update",
            "resume",
        ]
        reply = await engine.generate([1], Sampling(max_tokens=2))
        assert [span.version for span in reply.spans] == [3]
        assert server.asked[-1]["cache_salt"] == "3"
        with pytest.raises(WeightsError, match="not newer"):
            await engine.update_weights(published(3), mode)


async def test_a_refusal_leaves_the_old_weights(start: Start, model: Path) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        assert server.control is not None
        server.control["update_weights"] = "Call failed: refused weights: version 1: no such file"
        with pytest.raises(WeightsError, match=r"^version 1: no such file$"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)
        assert server.calls[-1] == "resume"
        assert "finish_weight_update" not in server.calls[-2:]
        reply = await engine.generate([1], Sampling(max_tokens=2))
        assert [span.version for span in reply.spans] == [0]


@pytest.mark.parametrize("call", ["pause", "start_weight_update", "update_weights"])
async def test_a_failure_before_anything_was_replaced_leaves_the_old_weights(
    start: Start, model: Path, call: str
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True, retry_s=0.3)
        assert server.control is not None
        server.control[call] = "broken"
        with pytest.raises(EngineError, match="version 1 was not loaded"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)
        assert server.calls[-1] == "resume"
        assert (await engine.generate([1], Sampling(max_tokens=1))).spans[0].version == 0


@pytest.mark.parametrize("is_late", [True, False])
async def test_after_a_failure_half_way_no_reply_is_taken(
    start: Start, model: Path, is_late: bool
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True, update_timeout_s=0.5)
        assert server.control is not None
        released = asyncio.Event()
        server.control["finish_weight_update"] = released if is_late else "broken"
        with pytest.raises(EngineError, match="is unknown: start it anew, and load"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)
        assert server.calls[-1] == "resume"
        with pytest.raises(EngineError, match="is unknown"):
            await engine.generate([1], Sampling(max_tokens=1))
        released.set()
        del server.control["finish_weight_update"]
        # Nothing is loaded on top of parts, and a server that was started anew has none.
        server.version = "0"
        with pytest.raises(EngineError, match="is unknown"):
            await engine.update_weights(published(2), UpdateMode.RECOMPUTE)
        server.version = "default"
        await engine.update_weights(published(2), UpdateMode.RECOMPUTE)
        assert (await engine.generate([1], Sampling(max_tokens=1))).spans[0].version == 2


async def test_what_was_asked_before_a_failure_half_way_is_no_reply_either(
    start: Start, model: Path
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True, update_timeout_s=0.5)
        assert server.control is not None
        server.control["finish_weight_update"] = released = asyncio.Event()
        updating = asyncio.create_task(engine.update_weights(published(1), UpdateMode.RECOMPUTE))
        await server.until(lambda: server.calls[-1] == "finish_weight_update")
        asked = asyncio.create_task(engine.generate([1], Sampling(max_tokens=1)))
        with pytest.raises(EngineError, match="is unknown"):
            await updating
        with pytest.raises(EngineError, match="is unknown"):
            await asked
        released.set()


@pytest.mark.parametrize("has_control", [True, False])
async def test_a_server_that_somebody_paused_is_refused_with_the_cure(
    start: Start, model: Path, monkeypatch: pytest.MonkeyPatch, has_control: bool
) -> None:
    monkeypatch.setattr("rollout.http_probe._PAUSED_S", 0.1)
    monkeypatch.setattr("rollout.http_probe._PROBE_S", 0.3)
    control = {} if has_control else None
    retry_s = 5.0 if has_control else 0.2
    said = await refusal(
        start, TableServer(is_paused=True, control=control), model, retry_s=retry_s
    )
    assert ("is paused" in said) is has_control
    assert ("did not answer all that it was asked" in said) is not has_control
    assert "/resume" in said


async def test_a_server_that_never_answers_is_refused(
    start: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.http_probe._PROBE_S", 0.3)
    said = await refusal(start, TableServer(is_mute=True), model, retry_s=0.2)
    assert "did not answer all that it was asked within 0.5 s" in said


async def test_a_server_that_goes_on_after_a_moment_is_used(start: Start, model: Path) -> None:
    async with TableServer(is_paused=True, control={}) as server:
        starting = asyncio.create_task(start(server, model))
        await asyncio.sleep(0.05)
        server.go_on()
        assert (await (await starting).generate([1], Sampling(max_tokens=1))).spans[0].version == 0


async def test_an_update_that_was_late_is_taken_up_by_the_next(start: Start, model: Path) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True, update_timeout_s=0.5)
        assert server.control is not None
        server.control["update_weights"] = released = asyncio.Event()
        with pytest.raises(EngineError, match="was not loaded: not within"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)
        released.set()
        del server.control["update_weights"]
        report = await engine.update_weights(published(2), UpdateMode.RECOMPUTE)
        assert report.version == 2 and server.version == "2"


async def test_a_pause_that_fails_for_a_moment_is_asked_for_again(
    start: Start, model: Path
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        assert server.control is not None
        server.control["pause"] = "busy"
        update = asyncio.create_task(engine.update_weights(published(1), UpdateMode.RECOMPUTE))
        before = server.calls.count("pause")
        await server.until(lambda: server.calls.count("pause") > before)
        del server.control["pause"]
        assert (await update).version == 1


async def test_a_server_that_stays_paused_is_said_to(
    start: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollout.engine_http._RESUME_S", 0.3)
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        assert server.control is not None
        server.control["resume"] = "broken"
        with pytest.raises(EngineError, match=rf"was loaded.*may stay paused.*{server.url}/resume"):
            await engine.update_weights(published(1), UpdateMode.RECOMPUTE)


async def test_a_cancelled_update_goes_on_serving(start: Start, model: Path) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        assert server.control is not None
        released = server.control["update_weights"] = asyncio.Event()
        updating = asyncio.create_task(engine.update_weights(published(1), UpdateMode.RECOMPUTE))
        await server.until(lambda: server.calls[-1] == "update_weights")
        updating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await updating
        assert server.calls[-1] == "resume"
        released.set()
        assert (await engine.generate([1], Sampling(max_tokens=1))).spans[0].version == 0


async def test_a_server_that_lost_its_weights_is_given_them_again(
    start: Start, model: Path
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True)
        await engine.update_weights(published(4), UpdateMode.RECOMPUTE)
        server.version = "default"  # as after it was started anew
        reply = await engine.generate([1], Sampling(max_tokens=2))
        assert [span.version for span in reply.spans] == [4]


async def test_a_request_outlives_a_server_that_ends_while_it_is_given_its_weights(
    start: Start, model: Path
) -> None:
    async with TableServer(control={}) as server:
        engine = await start(server, model, updates=True, retry_s=30.0)
        await engine.update_weights(published(4), UpdateMode.RECOMPUTE)
        assert server.control is not None
        server.control["update_weights"] = "gone"
        server.version = "default"  # as after it was started anew
        before = server.calls.count("update_weights")
        asked = asyncio.create_task(engine.generate([1], Sampling(max_tokens=2)))
        await server.until(lambda: server.calls.count("update_weights") > before)
        del server.control["update_weights"]
        assert [span.version for span in (await asked).spans] == [4]


async def test_each_actor_has_a_server_and_the_evaluator_the_last(model: Path) -> None:
    async with TableServer() as first, TableServer() as second, TableServer() as third:
        urls = [one.url for one in (first, second, third)]
        settings = ["local.toml", "engine.kind=http", f"engine.http.urls={urls}", "learner.steps=0"]
        config = await asyncio.to_thread(load, settings)
        for name, server in [("actor-0", first), ("actor-1", second), ("evaluator", third)]:
            before = [len(one.asked) for one in (first, second, third)]
            engine = await start_engine(
                config, str(model), name=name, section=config.engine, version=0, log=model / "log"
            )
            await engine.close()
            after = [len(one.asked) for one in (first, second, third)]
            asked = [
                one for one, *counts in zip(urls, before, after, strict=True) if len({*counts}) > 1
            ]
            assert asked == [server.url]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["engine.http.urls=['http://a:1']", "actors.count=2"], "2 are needed"),
        (["engine.http.urls=['http://a:1']", "eval.every=5"], "and one for eval.every"),
        (["engine.http.urls=[]"], "has 0 and 1 are needed"),
        (["engine.http.urls=['a:1']"], "write http://host:port"),
        (["engine.http.urls=['http://me:pw@a:1']"], "write http://host:port"),
        (["engine.http.urls=['http://a:1','http://a:1/']", "actors.count=2"], "a server twice"),
        (["engine.http.urls=['http://a:1']", "engine.http.update_timeout_s=90"], "less than half"),
        (["engine.http.urls=['http://127.0.0.1:9']", "engine.http.retry_s=0"], "server runs"),
    ],
)
def test_settings_are_refused_before_anything_starts(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_engine(load(["local.toml", "engine.kind=http", *settings]))
    assert said in str(caught.value)
    assert "pw" not in str(caught.value)
