"""`Chat`: a model at an OpenAI-compatible endpoint, asked until it replies.

What may pass (no connection, a limit of rate, an overload, an odd body) is tried again with pauses that
grow. What does not pass raises PlayerError, which ends the whole measurement. The key is in no message.
"""

import asyncio
from random import Random
from typing import Any

import msgspec
import openai

from synth.player import PlayerError

# Seconds before the first further try, doubled for each one after it up to the longest.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# What the client sends where an endpoint needs no key.
NO_KEY = "none"
# Characters of what an endpoint said that are shown.
MAX_SAID = 300

_CURES = {
    401: "put the right key into the environment variable that filters.key_env names",
    402: "pay, or choose another endpoint",
    403: "choose a model that the key may use with filters.model, or another key",
    404: "correct filters.base_url, which most often ends in /v1, or filters.model",
}
_PASSING = frozenset({408, 409, 425, 429})
_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "maximum context",
    "too long",
    "max_model_len",
)

Message = dict[str, Any]


class ContextFull(Exception):
    """The endpoint has no room for a conversation this long."""


class ChatError(RuntimeError):
    """This request failed every time; another may fare better."""


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """The tool that is called, with arguments as JSON text."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call in a reply."""

    id: str | None = None
    function: Function


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """The message in a reply."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    message: Said


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    choices: list[_Choice]
    usage: _Usage | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What the model said, and how long the conversation is with it."""

    said: Said
    num_tokens: int
    """Of prompt and reply; 0 where the endpoint does not say."""


class Chat:
    """One model at one endpoint. Made by `start`; close it."""

    def __init__(
        self, client: openai.AsyncOpenAI, *, model: str, retries: int, pause_s: float
    ) -> None:
        self.model = model
        self._client = client
        self._retries = retries
        self._pause_s = pause_s
        # Spreads the tries of many requests; no result depends on it.
        self._rng = Random()
        self.num_retries = 0

    @classmethod
    async def start(
        cls,
        *,
        base_url: str,
        model: str,
        key: str = "",
        retries: int = 5,
        timeout_s: float = 300.0,
        pause_s: float = FIRST_PAUSE_S,
    ) -> "Chat":
        """`timeout_s` is for one try, `pause_s` before the first further one."""
        # Beside the loop: it reads certificates.
        client = await asyncio.to_thread(
            openai.AsyncOpenAI,
            api_key=key or NO_KEY,
            base_url=base_url,
            max_retries=0,
            timeout=timeout_s,
        )
        return cls(client, model=model, retries=retries, pause_s=pause_s)

    async def ask(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]],
        *,
        temperature: float,
        max_tokens: int,
        seed: int,
    ) -> Reply:
        """The model's next message. Raises ContextFull, ChatError, PlayerError."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "tools": tools,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        said = ""
        for attempt in range(self._retries + 1):
            if attempt:
                self.num_retries += 1
                pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2 ** (attempt - 1))
                await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            try:
                answer = await self._client.chat.completions.with_raw_response.create(**body)
                return _read(answer.content)
            except openai.APIStatusError as error:
                said = f"{error.status_code}: {self._clean(error.response.text)[:MAX_SAID]}"
                self._check_passes(error, said)
            except openai.APIConnectionError as error:  # a timeout is one
                said = self._clean(f"{error} {error.__cause__ or ''}".strip())[:MAX_SAID]
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                said = f"no chat completion: {self._clean(str(error))[:MAX_SAID]}"
        raise ChatError(f"the endpoint failed {self._retries + 1} tries, last with {said}")

    async def close(self) -> None:
        await self._client.close()

    def _check_passes(self, error: openai.APIStatusError, said: str) -> None:
        """Raise what a status means that another try would meet again."""
        status = error.status_code
        if status in (400, 413, 422) and any(word in said.lower() for word in _CONTEXT_WORDS):
            raise ContextFull(said) from None
        if (status in _PASSING and "insufficient_quota" not in said) or status >= 500:
            return
        cure = _CURES.get(status, "see what it says of the request")
        url = self._client.base_url.copy_with(userinfo=b"", query=None)
        raise PlayerError(f"{url} answered {said}; to do: {cure}") from None

    def _clean(self, text: str) -> str:
        """`text` without the key, which a server may echo."""
        key = self._client.api_key
        return text if key == NO_KEY else text.replace(key, "***")


def _read(data: bytes) -> Reply:
    """Raises ValueError for what is no chat completion."""
    completion = msgspec.json.decode(data, type=_Completion)
    if not completion.choices:
        raise ValueError("it has no choices")
    usage = completion.usage or _Usage()
    return Reply(
        said=completion.choices[0].message,
        num_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
