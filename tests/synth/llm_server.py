"""A real HTTP server that speaks `/v1/chat/completions` and answers as a test's script says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from configs.synth import LlmRecipe
from synth.llm.recorded import FOLDER, recorded_problems
from synth.problem import Problem

KEY = "sk-never-written-anywhere"
ENVIRON = {"LLM_TEST_KEY": KEY}


@dataclass(kw_only=True)
class Answer:
    """One response; with `hangs` none comes."""

    text: str = ""
    finish: str = "stop"
    refusal: str | None = None
    status: int = 200
    body: str | None = None
    """In place of a chat completion."""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    drips: bool = False
    """Send blanks without end, so that the client always has something to read."""
    tokens: tuple[int, int] = (100, 10)


Script = Callable[[dict[str, Any]], Answer]


@dataclass(kw_only=True)
class Served:
    """What the server saw."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    num_now: int = 0
    max_now: int = 0
    """Most requests under way at once."""


@asynccontextmanager
async def serve(script: Script | list[Answer]) -> AsyncIterator[Served]:
    """Answer by a function of the request's body, or one after another from a list."""
    served = Served(url="")
    stopping = asyncio.Event()
    left = list(script) if isinstance(script, list) else []

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not stopping.is_set():
            try:
                await response.write(b" ")
            except ConnectionError:
                break
            await asyncio.sleep(0.01)
        return response

    async def handle(request: web.Request) -> web.StreamResponse:
        served.num_now += 1
        served.max_now = max(served.max_now, served.num_now)
        try:
            body = await request.json()
            served.bodies.append(body)
            served.headers.append(dict(request.headers))
            answer = left.pop(0) if isinstance(script, list) else script(body)
            # Others get a chance to come in, so that a bound on concurrency shows.
            for _ in range(20):
                await asyncio.sleep(0)
            if answer.hangs:
                await stopping.wait()
            if answer.drips:
                return await drip(request)
            text = completion(answer) if answer.body is None else answer.body
            kind = "text/html" if text.startswith("<") else "application/json"
            return web.Response(
                text=text, status=answer.status, headers=answer.headers, content_type=kind
            )
        finally:
            served.num_now -= 1

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield served
    finally:
        stopping.set()
        await runner.cleanup()


def completion(answer: Answer) -> str:
    """Body of a chat completion."""
    message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
    prompt_tokens, reply_tokens = answer.tokens
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": reply_tokens},
        }
    )


def make_recipe(url: str = "", **settings: Any) -> LlmRecipe:
    defaults: dict[str, Any] = {
        "enabled": True,
        "base_url": url,
        "model": "tiny",
        "key_env": "LLM_TEST_KEY",
        "solvers": 0,
        "timeout_s": 20.0,
    }
    return LlmRecipe(**{**defaults, **settings})


class Pauses:
    """A sleep that takes no time and remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        await asyncio.sleep(0)


PROBLEM: Problem = recorded_problems()[0]
ENVIRONMENT = (FOLDER / "replies" / f"{PROBLEM.id}.environment.md").read_text()
SOLVER = (FOLDER / "replies" / f"{PROBLEM.id}.solver.0.md").read_text()


def is_about_solver(body: dict[str, Any]) -> bool:
    return "```python solver" in body["messages"][0]["content"]


def good(body: dict[str, Any]) -> Answer:
    """What a model should say."""
    return Answer(text=SOLVER if is_about_solver(body) else ENVIRONMENT)
