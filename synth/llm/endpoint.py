"""An OpenAI-compatible endpoint: one question, one reply, however often the endpoint has to be asked.

What passes (a limit of rate, an overload, a timeout, a broken connection) is tried again, with pauses
that grow and that the endpoint may lengthen. What does not pass ends everything at once with an
EndpointError: no further question would fare better. The key is in no message, log or file.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

import msgspec
import openai

from configs.synth import LlmRecipe
from synth.llm.address import NO_KEY, shown
from synth.llm.cache import Request
from synth.llm.replies import RefusedReply, Reply

log = logging.getLogger(__name__)

# Seconds before the first further try; doubled for each one after it, up to the longest.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# An endpoint that asks for a longer pause is not waited for that long.
LONGEST_RETRY_AFTER_S = 600.0
# Questions in a row that came to nothing after all retries, whereupon the endpoint counts as down.
MAX_FAILED_IN_ROW = 3

_TIMEOUT = 408
_TOO_MANY = 429
_SERVER = 500
# Of what an endpoint says, this much is shown.
_MAX_SAID = 300
# Letters of a token, where the endpoint does not say how many tokens there were.
_LETTERS = 4
# Words of a 400 that is about one question only, not about the endpoint.
_ABOUT_ONE = ("context length", "context_length", "maximum context", "content_filter")
_CURES = {
    400: "see what it says of the request; llm.model, llm.temperature and llm.max_tokens are yours",
    401: "put the right key into the environment variable that llm.key_env names",
    402: "pay, or choose another endpoint",
    403: "choose a model that the key may use with llm.model, or another key",
    404: "correct llm.base_url, which most often ends in /v1, or llm.model",
    429: "raise the account's quota, or choose another endpoint",
}
_ANOTHER_URL = "correct llm.base_url, which most often ends in /v1, and see that the server runs"

Sleep = Callable[[float], Awaitable[None]]


class EndpointError(RuntimeError):
    """The endpoint cannot be used: its address, what it answered and the cure are in the text."""


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    message: _Said
    finish_reason: str | None = None


class _Tokens(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    choices: list[_Choice]
    usage: _Tokens | None = None


def read_completion(data: bytes) -> Reply:
    """The reply in the body of a chat completion; raises ValueError for any other body."""
    try:
        completion = msgspec.json.decode(data, type=_Completion)
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not completion.choices:
        raise ValueError("it has no choices")
    choice, tokens = completion.choices[0], completion.usage or _Tokens()
    return Reply(
        text=choice.message.content or "",
        refusal=choice.message.refusal or "",
        finish=choice.finish_reason or "stop",
        prompt_tokens=tokens.prompt_tokens,
        reply_tokens=tokens.completion_tokens,
    )


class Endpoint:
    """Asks, again and again where that helps. Close it after use."""

    def __init__(
        self, recipe: LlmRecipe, *, url: str, key: str, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._recipe = recipe
        self._url = url
        self._key = key
        self._sleep = sleep
        # Only spreads the tries of many requests; no result depends on it.
        self._rng = Random()
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=url, max_retries=0, timeout=recipe.timeout_s
        )
        self._failed_in_row = 0
        self._has_answered = False
        self._broken = ""
        self.retries = 0

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, request: Request) -> Reply:
        """The reply. Raises RefusedReply where only this question failed, else EndpointError."""
        for attempt in range(self._recipe.retries + 1):
            if self._broken:
                raise EndpointError(self._broken)
            try:
                reply = await self._try(request)
            except (openai.APIConnectionError, openai.APIStatusError, TimeoutError) as error:
                if isinstance(error, openai.APIStatusError) and not _passes(error):
                    raise self._final(error) from None
                if attempt == self._recipe.retries:
                    raise self._exhausted(error) from None
                self.retries += 1
                pause_s = self._pause_s(attempt, error)
                log.info("endpoint: %s; again in %.1f s", self._said(error), pause_s)
                await self._sleep(pause_s)
            else:
                self._failed_in_row = 0
                self._has_answered = True
                return reply
        raise AssertionError("the last attempt returns or raises")

    async def _try(self, request: Request) -> Reply:
        # The client's own timeout is for each read: a server that drips would never reach it.
        async with asyncio.timeout(self._recipe.timeout_s):
            answer = await self._client.chat.completions.with_raw_response.create(**request.body)
        try:
            reply = read_completion(answer.content)
        except ValueError as error:
            said = self._clean(answer.content[:_MAX_SAID].decode(errors="replace"))
            what = f"answered {answer.status_code} with no chat completion ({error}): {said!r}"
            self._failed_in_row += 1
            # An endpoint that was well before may have hiccups; one that never was is none.
            if self._has_answered and self._failed_in_row < MAX_FAILED_IN_ROW:
                raise RefusedReply("endpoint", f"the endpoint {what}") from None
            raise self._break(what, _ANOTHER_URL) from None
        # A server that echoes its headers must not bring the key into the cache.
        reply = msgspec.structs.replace(reply, text=self._clean(reply.text))
        if reply.prompt_tokens or reply.reply_tokens:
            return reply
        # Where it does not count tokens, a budget needs a guess.
        return msgspec.structs.replace(
            reply,
            prompt_tokens=sum(len(one.content) for one in request.messages) // _LETTERS,
            reply_tokens=len(reply.text) // _LETTERS,
        )

    def _final(self, error: openai.APIStatusError) -> Exception:
        """What a status means that does not pass."""
        said = self._said(error)
        if error.status_code == 413 or (
            error.status_code == 400 and any(word in said.lower() for word in _ABOUT_ONE)
        ):
            return RefusedReply("endpoint", f"the endpoint refused this question: {said}")
        cure = _CURES.get(error.status_code, "see what it says of the request")
        return self._break(f"answered {said}", cure)

    def _exhausted(self, error: Exception) -> Exception:
        """What it means that the last try failed."""
        said, tries = self._said(error), self._recipe.retries + 1
        has_no_server = isinstance(error, openai.APIConnectionError) and not isinstance(
            error, openai.APITimeoutError
        )
        self._failed_in_row += 1
        if has_no_server or self._failed_in_row >= MAX_FAILED_IN_ROW:
            cure = _ANOTHER_URL if has_no_server else "go on when it is well again"
            return self._break(f"failed {tries} tries of a request, last with: {said}", cure)
        return RefusedReply("endpoint", f"the endpoint failed {tries} tries, last with: {said}")

    def _break(self, what: str, cure: str) -> EndpointError:
        self._broken = f"{shown(self._url)} {what}; to do: {cure}"
        return EndpointError(self._broken)

    def _said(self, error: Exception) -> str:
        """An error in words, with its status."""
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return f"no reply within {self._recipe.timeout_s:g} s (llm.timeout_s)"
        if isinstance(error, openai.APIStatusError):
            return f"{error.status_code}: {self._clean(error.response.text)[:_MAX_SAID]}"
        cause = error.__cause__ or error
        return f"no connection ({self._clean(str(cause) or type(cause).__name__)[:_MAX_SAID]})"

    def _clean(self, text: str) -> str:
        """`text` without the key."""
        return text if self._key == NO_KEY else text.replace(self._key, "***")

    def _pause_s(self, attempt: int, error: Exception) -> float:
        """Doubled with each attempt, from half to all of it by chance; never less than asked for."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * self._rng.uniform(0.5, 1.0)
        if isinstance(error, openai.APIStatusError):
            asked_s = retry_after_s(error.response.headers, datetime.now(UTC))
            pause_s = max(pause_s, min(asked_s, LONGEST_RETRY_AFTER_S))
        return pause_s


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float:
    """Seconds that a response's Retry-After asks to wait, given as seconds or as a date; 0 without."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def _passes(error: openai.APIStatusError) -> bool:
    """Whether a status is one that another try may not meet."""
    if error.status_code == _TOO_MANY:
        return "insufficient_quota" not in error.response.text
    return error.status_code == _TIMEOUT or error.status_code >= _SERVER
