"""An OpenAI-compatible server on loopback, whose model plays `sum_list` by a script."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from aiohttp import web

from envpool.envs.sum_list import SumList

Body = dict[str, Any]
# What the model says to a request, or what the server answers in its place.
Script = Callable[[Body], Body | web.Response]


class ScriptedEndpoint:
    """Answers with `script`; keeps what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Body] = []
        self.keys: list[str] = []
        self.url = ""
        self.running = 0
        self.most_running = 0

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0.01)  # others may arrive meanwhile
            said = self.script(body)
        finally:
            self.running -= 1
        return said if isinstance(said, web.Response) else completion(said, body)


def completion(said: Body, body: Body) -> web.Response:
    # Four characters to a token, roughly.
    tokens = sum(len(json.dumps(message)) for message in body["messages"]) // 4
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens + 5}
    return web.json_response(
        {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
    )


@asynccontextmanager
async def serve(script: Script) -> AsyncIterator[ScriptedEndpoint]:
    endpoint = ScriptedEndpoint(script)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", endpoint.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield endpoint
    finally:
        await runner.cleanup()


def error(status: int, text: str) -> web.Response:
    return web.json_response({"error": {"message": text}}, status=status)


def observations(body: Body) -> list[str]:
    """What the environment answered so far, whichever way it came."""
    found = []
    for message in body["messages"][1:]:
        text = message["content"]
        if message["role"] == "tool":
            found.append(text)
        elif message["role"] == "user":
            found.append(text.removeprefix("<tool_response>\n").removesuffix("\n</tool_response>"))
    return found


def oracle_call(body: Body) -> tuple[str, Body]:
    """The next call of the environment's oracle, which needs no more than the observations."""
    oracle = SumList().oracle()
    call = next(oracle)
    for observation in observations(body):
        call = oracle.send(observation)
    return call


def tool_calls(*calls: tuple[str, Any]) -> Body:
    """A message with tool calls; arguments that are no object are sent as they are."""
    return {
        "content": None,
        "tool_calls": [
            {
                "id": f"id_{index}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments)
                    if isinstance(arguments, dict)
                    else arguments,
                },
            }
            for index, (name, arguments) in enumerate(calls)
        ],
    }


def as_tool_call(body: Body) -> Body:
    return tool_calls(oracle_call(body))


def as_text(body: Body) -> Body:
    name, arguments = oracle_call(body)
    call = json.dumps({"name": name, "arguments": arguments})
    return {"content": f"I will call a tool.\n<tool_call>\n{call}\n</tool_call>"}


def wins_with(chance: float) -> Script:
    """Plays as the oracle, and answers wrongly by chance of the request's seed."""

    def script(body: Body) -> Body:
        name, arguments = oracle_call(body)
        if name == "done" and Random(body["seed"]).random() >= chance:
            arguments = {"answer": arguments["answer"] + 1}
        return tool_calls((name, arguments))

    return script
