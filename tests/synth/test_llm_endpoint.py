"""`synth.chat` and `synth.llm.endpoint`: what is tried again, what ends everything, and the key unseen."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from configs.load import ConfigError
from configs.synth import LlmRecipe
from synth.address import NO_KEY, find_key, find_url, section_of, shown
from synth.chat import LONGEST_RETRY_AFTER_S, Chat, EndpointError, read_completion, retry_after_s
from synth.llm.cache import Message, Request
from synth.llm.endpoint import MAX_FAILED_IN_ROW, Endpoint
from synth.llm.replies import RefusedReply
from tests.synth.llm_server import KEY, Answer, Pauses, make_recipe, serve

REQUEST = Request(
    model="tiny",
    messages=(Message(role="user", content="hello"),),
    seed=3,
    temperature=0.5,
    max_tokens=64,
    versions="test 1",
)


@asynccontextmanager
async def asking(
    url: str, pauses: Pauses | None = None, **settings: object
) -> AsyncIterator[Endpoint]:
    recipe: LlmRecipe = make_recipe(url, **settings)
    chat = await asyncio.to_thread(
        Chat,
        url=url,
        key=KEY,
        section=section_of(recipe),
        retries=recipe.retries,
        timeout_s=recipe.timeout_s,
        sleep=pauses or Pauses(),
    )
    endpoint = Endpoint(chat)
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def test_a_request_is_sent_as_it_is_and_answered() -> None:
    async with serve([Answer(text="hi", tokens=(7, 2))]) as served, asking(served.url) as endpoint:
        reply = await endpoint.ask(REQUEST)
        assert (reply.text, reply.finish, reply.prompt_tokens, reply.reply_tokens) == (
            "hi",
            "stop",
            7,
            2,
        )
        assert served.bodies == [
            {
                "model": "tiny",
                "messages": [{"role": "user", "content": "hello"}],
                "seed": 3,
                "temperature": 0.5,
                "max_tokens": 64,
            }
        ]
        assert served.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_too_many_requests_waits_as_long_as_asked() -> None:
    script = [Answer(status=429, body="{}", headers={"Retry-After": "17"}), Answer(text="hi")]
    pauses = Pauses()
    async with serve(script) as served, asking(served.url, pauses) as endpoint:
        assert (await endpoint.ask(REQUEST)).text == "hi"
        assert pauses.asked_s == [17.0] and endpoint.retries == 1


async def test_pauses_grow_while_the_server_fails() -> None:
    script = [*(Answer(status=status, body="oh") for status in (500, 503, 502)), Answer(text="hi")]
    pauses = Pauses()
    async with serve(script) as served, asking(served.url, pauses) as endpoint:
        assert (await endpoint.ask(REQUEST)).text == "hi"
    assert [0.5 * 2**k <= s <= 2**k for k, s in enumerate(pauses.asked_s)] == [True] * 3


@pytest.mark.parametrize("bad", [Answer(hangs=True), Answer(drips=True)])
async def test_a_hanging_server_is_asked_again(bad: Answer) -> None:
    seen: list[object] = []

    def answer(body: object) -> Answer:
        seen.append(body)
        return bad if len(seen) == 1 else Answer(text="hi")

    async with serve(answer) as served, asking(served.url, timeout_s=1.0) as endpoint:
        assert (await endpoint.ask(REQUEST)).text == "hi"
        assert endpoint.retries == len(seen) - 1 >= 1


async def test_a_question_fails_alone_until_several_did_in_a_row() -> None:
    async with serve(lambda _: Answer(status=500, body="oh")) as served:
        async with asking(served.url, retries=1) as endpoint:
            for _ in range(MAX_FAILED_IN_ROW - 1):
                with pytest.raises(RefusedReply, match="failed 2 tries, last with: 500: oh"):
                    await endpoint.ask(REQUEST)
            with pytest.raises(EndpointError, match="500: oh"):
                await endpoint.ask(REQUEST)
        assert len(served.bodies) == 2 * MAX_FAILED_IN_ROW


async def test_a_good_reply_begins_the_count_of_failures_anew() -> None:
    fails = [Answer(status=500, body="oh")] * (MAX_FAILED_IN_ROW - 1)
    script = [*fails, Answer(text="hi"), *fails]
    async with serve(script) as served, asking(served.url, retries=0) as endpoint:
        for answer in script:
            if answer.status == 200:
                assert (await endpoint.ask(REQUEST)).text == "hi"
            else:
                with pytest.raises(RefusedReply):
                    await endpoint.ask(REQUEST)


async def test_an_endpoint_that_is_down_is_told_with_its_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        async with asking(url, retries=2) as endpoint:
            with pytest.raises(
                EndpointError, match=r"no connection.*correct llm\.base_url"
            ) as caught:
                await endpoint.ask(REQUEST)
            assert url in str(caught.value) and endpoint.retries == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body="<html><body>Welcome</body></html>"),
        Answer(body='{"object": "list"}'),
        Answer(body='{"choices": []}'),
    ],
)
async def test_what_is_no_chat_completion_ends_everything(answer: Answer) -> None:
    async with serve(lambda _: answer) as served, asking(served.url, retries=1) as endpoint:
        for _ in range(2):
            with pytest.raises(EndpointError, match=r"no chat completion.*llm\.base_url") as caught:
                await endpoint.ask(REQUEST)
            assert served.url in str(caught.value) and str(answer.body)[:10] in str(caught.value)
        # The second time nothing is sent.
        assert len(served.bodies) == 2


async def test_an_endpoint_that_was_well_may_hiccup() -> None:
    html = Answer(body="<html></html>")
    script = [Answer(text="hi"), *[html] * (MAX_FAILED_IN_ROW - 1), Answer(text="hi")]
    script += [html] * MAX_FAILED_IN_ROW
    async with serve(script) as served, asking(served.url, retries=0) as endpoint:
        ends = []
        for _ in script:
            try:
                ends.append((await endpoint.ask(REQUEST)).text)
            except RefusedReply as refused:
                ends.append(refused.reason)
            except EndpointError:
                ends.append("broken")
        few = ["endpoint"] * (MAX_FAILED_IN_ROW - 1)
        assert ends == ["hi", *few, "hi", *few, "broken"]


async def test_bytes_that_are_no_text_are_no_chat_completion() -> None:
    with pytest.raises(ValueError, match="decode"):
        read_completion(b'{"choices": [{"message": {"content": "\xff"}}]}')


async def test_tokens_are_guessed_where_they_are_not_counted() -> None:
    async with serve([Answer(text="x" * 400, tokens=(0, 0))]) as served, asking(served.url) as one:
        reply = await one.ask(REQUEST)
    assert (reply.prompt_tokens, reply.reply_tokens) == (1, 100)


@pytest.mark.parametrize(
    ("status", "said", "cure"),
    [
        (400, "bad seed", "whose settings are those of llm"),
        (401, f"wrong key {KEY}", "llm.key_env"),
        (402, "no money", "pay"),
        (403, "not yours", "llm.model"),
        (404, "no such model", "llm.base_url"),
        (418, "teapot", "see what it says"),
        (429, '{"error": {"code": "insufficient_quota"}}', "quota"),
    ],
)
async def test_a_status_that_does_not_pass_ends_everything_once(
    status: int, said: str, cure: str
) -> None:
    async with serve([Answer(status=status, body=said)]) as served, asking(served.url) as endpoint:
        texts = []
        for _ in range(2):
            with pytest.raises(EndpointError) as caught:
                await endpoint.ask(REQUEST)
            texts.append(str(caught.value))
        # The second time nothing is sent.
        assert texts[0] == texts[1] and len(served.bodies) == 1
        assert served.url in texts[0] and str(status) in texts[0] and cure in texts[0]
        assert KEY not in texts[0]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "maximum context length is 4096 tokens"),
        (413, "too large"),
        (422, "the prompt is too long"),
        (400, "content_filter"),
    ],
)
async def test_a_question_that_is_too_long_fails_alone(status: int, said: str) -> None:
    script = [Answer(status=status, body=said), Answer(text="hi")]
    async with serve(script) as served, asking(served.url) as endpoint:
        with pytest.raises(RefusedReply, match=said):
            await endpoint.ask(REQUEST)
        assert (await endpoint.ask(REQUEST)).text == "hi"


async def test_a_key_that_the_server_echoes_is_left_out() -> None:
    script = [Answer(text=f"your key is {KEY}", refusal=f"not with {KEY}")]
    async with serve(script) as served, asking(served.url) as endpoint:
        reply = await endpoint.ask(REQUEST)
        assert (reply.text, reply.refusal) == ("your key is ***", "not with ***")


async def test_what_stands_for_a_key_is_no_secret_to_strike_out() -> None:
    async with serve([Answer(text="next: x")]) as served:
        endpoint = Endpoint(await asyncio.to_thread(Chat, url=served.url, key="x", section="llm"))
        assert (await endpoint.ask(REQUEST)).text == "next: x"
        await endpoint.close()


async def test_a_pause_that_is_asked_for_is_bounded() -> None:
    script = [Answer(status=503, body="", headers={"Retry-After": "inf"}), Answer(text="hi")]
    pauses = Pauses()
    async with serve(script) as served, asking(served.url, pauses) as endpoint:
        await endpoint.ask(REQUEST)
    assert pauses.asked_s == [LONGEST_RETRY_AFTER_S]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2.5", 2.5),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("-1", 0.0),
        ("nan", 0.0),
        ("soon", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float) -> None:
    now = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    assert retry_after_s({"retry-after": value}, now) == seconds


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://127.0.0.1/v1",
        "http://[::1]:1/v1",
        "http://10.1.2.3/v1",
        "http://vllm/v1",
    ],
)
def test_a_local_server_needs_no_key(url: str) -> None:
    recipe = make_recipe(url)
    assert find_key(recipe, url, {}) == NO_KEY
    assert find_key(recipe, url, {"LLM_TEST_KEY": KEY}) == KEY


def test_a_missing_key_is_the_users_mistake() -> None:
    url = "https://user:secret@api.example.com/v1?token=secret"
    with pytest.raises(ConfigError, match="LLM_TEST_KEY") as caught:
        find_key(make_recipe(url), url, {"OTHER": "x"})
    assert "api.example.com/v1" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk one", "sk\u00e9", "sk\nX: y"])
def test_a_key_that_is_none_is_refused_unseen(key: str) -> None:
    with pytest.raises(ConfigError, match="LLM_TEST_KEY") as caught:
        find_key(make_recipe(), "http://localhost/v1", {"LLM_TEST_KEY": key})
    assert key not in str(caught.value)


def test_the_address_is_the_recipes_or_the_environments() -> None:
    environ = {"OPENAI_BASE_URL": "http://b/v1"}
    assert find_url(make_recipe("http://a/v1"), environ) == "http://a/v1"
    assert find_url(make_recipe(""), environ) == "http://b/v1"
    for url in (
        "",
        "localhost:8000",
        "ftp://a",
        "http://",
        "http://[::1",
        "http://a:99999",
        "http://a b",
    ):
        with pytest.raises(ConfigError, match=r"llm\.base_url"):
            find_url(make_recipe(url), {})


def test_an_address_is_shown_without_its_secrets() -> None:
    assert shown("http://me:pass@host:1/v1?key=2") == "http://host:1/v1"
