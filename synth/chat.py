"""`Chat`: a model at an OpenAI-compatible endpoint, asked until it replies.

What may pass (a limit of rate, an overload, a timeout, no connection, an odd body) is tried again, with
pauses that grow and that the endpoint may lengthen. What does not pass raises EndpointError, then and for
every later question. The key is in no message, log or reply.

The client's own retries are off: they also repeat what no waiting cures, and know neither odd bodies nor
servers that drip.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any

import msgspec
import openai

from synth.address import NO_KEY, shown

log = logging.getLogger(__name__)

# Seconds before the first further try; doubled for each one after it, up to the longest.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
# An endpoint that asks for a longer pause is not waited for that long.
LONGEST_RETRY_AFTER_S = 600.0

# Of what an endpoint says, this much is shown.
_MAX_SAID = 300
# What is shorter is no secret, but what people write where a server wants any key.
_MIN_KEY = 8
# Statuses that are about one question, and words by which they are known.
_ABOUT_ONE = (400, 413, 422)
_CONTEXT_WORDS = (
    "context length",
    "context_length",
    "maximum context",
    "too long",
    "max_model_len",
)
_PASSING = (408, 409, 425, 429)
# By status; SECTION is the table of the recipe with the endpoint's settings.
_CURES = {
    400: "see what it says of the request, whose settings are those of SECTION in the recipe",
    401: "put the right key into the environment variable that SECTION.key_env names",
    402: "pay, or choose another endpoint",
    403: "choose a model that the key may use with SECTION.model, or another key",
    404: "correct SECTION.base_url, which most often ends in /v1, or SECTION.model",
    429: "raise the account's quota, or choose another endpoint",
}

Message = dict[str, Any]
Sleep = Callable[[float], Awaitable[None]]


class EndpointError(RuntimeError):
    """The endpoint cannot be used: its address, what it answered and the cure are in the text."""


class QuestionError(RuntimeError):
    """This question is refused, whenever it is asked; another may fare better."""


class ContextFull(QuestionError):
    """The endpoint has no room for a conversation this long."""


class TriesFailed(RuntimeError):
    """This question failed every time; another may fare better."""

    def __init__(self, text: str, *, has_endpoint: bool) -> None:
        """`has_endpoint`: whether the last try met one, be it overloaded or slow."""
        super().__init__(text)
        self.has_endpoint = has_endpoint


class _TryFailed(Exception):
    """Another try may fare better, after `asked_s` seconds at least."""

    def __init__(self, said: str, *, has_endpoint: bool = True, asked_s: float = 0.0) -> None:
        super().__init__(said)
        self.said = said
        self.has_endpoint = has_endpoint
        self.asked_s = asked_s


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
    """Set where the model declined by the field that endpoints have for it."""
    tool_calls: list[ToolCall] | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A reply, and why it ended."""

    message: Said
    finish_reason: str | None = None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Of prompt and reply; 0 where the endpoint does not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A chat completion, as far as it is looked at: the first choice, of which there is one."""

    choices: list[Choice]
    usage: Tokens | None = None

    @property
    def said(self) -> Said:
        return self.choices[0].message

    @property
    def tokens(self) -> Tokens:
        return self.usage or Tokens()


def read_completion(data: bytes) -> Completion:
    """The chat completion that a body is; raises ValueError for any other body."""
    try:
        completion = msgspec.json.decode(data, type=Completion)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no chat completion ({error})") from error
    if not completion.choices:
        raise ValueError("no chat completion (it has no choices)")
    return completion


class Chat:
    """One endpoint. Close it."""

    def __init__(
        self,
        *,
        url: str,
        key: str,
        section: str,
        retries: int = 5,
        timeout_s: float = 300.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`section` is the recipe's table with the settings, `timeout_s` for one try.

        Blocks: the client reads certificates.
        """
        self._url = url
        self._key = key
        self._section = section
        self._retries = retries
        self._timeout_s = timeout_s
        self._sleep = sleep
        # Only spreads the tries of many requests; no result depends on it.
        self._rng = Random()
        self._client = openai.AsyncOpenAI(
            api_key=key, base_url=url, max_retries=0, timeout=timeout_s
        )
        self._broken = ""
        self.num_retries = 0

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any]) -> Completion:
        """The reply to a chat request. Raises QuestionError, TriesFailed, EndpointError."""
        tries_left = self._retries
        while True:
            if self._broken:
                raise EndpointError(self._broken)
            try:
                return await self._try(body)
            except _TryFailed as failed:
                if not tries_left:
                    raise TriesFailed(
                        f"the endpoint failed {self._retries + 1} tries, last with: {failed.said}",
                        has_endpoint=failed.has_endpoint,
                    ) from None
                pause_s = self._pause_s(self._retries - tries_left, failed.asked_s)
                log.info("endpoint: %s; again in %.1f s", failed.said, pause_s)
            tries_left -= 1
            self.num_retries += 1
            await self._sleep(pause_s)

    async def _try(self, body: Mapping[str, Any]) -> Completion:
        try:
            # The client's own timeout is for each read: a server that drips would never reach it.
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.chat.completions.with_raw_response.create(**body)
        except openai.APIStatusError as error:
            self._check_passes(error)
            asked_s = retry_after_s(error.response.headers, datetime.now(UTC))
            raise _TryFailed(self._said(error), asked_s=asked_s) from None
        except (openai.APITimeoutError, TimeoutError):
            raise _TryFailed(f"no reply within {self._timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            what = self._clean(str(cause) or type(cause).__name__)[:_MAX_SAID]
            raise _TryFailed(f"no connection ({what})", has_endpoint=False) from None
        try:
            return self._cleaned(read_completion(answer.content))
        except ValueError as error:
            said = self._clean(answer.content[:_MAX_SAID].decode(errors="replace"))
            what = f"{answer.status_code}, {error}: {said!r}"
            raise _TryFailed(what, has_endpoint=False) from None

    def give_up(self, what: str, cure: str) -> EndpointError:
        """Ask nothing more; `what` the endpoint did is the error of every question from now on."""
        cure = cure.replace("SECTION", self._section)
        self._broken = f"{shown(self._url)} {what}; to do: {cure}"
        return EndpointError(self._broken)

    def _check_passes(self, error: openai.APIStatusError) -> None:
        """Raise what a status means that another try would meet again."""
        status, said = error.status_code, self._said(error)
        is_told = any(word in said.lower() for word in _CONTEXT_WORDS)
        if status == 413 or (status in _ABOUT_ONE and is_told):
            raise ContextFull(said) from None
        if status in _ABOUT_ONE and "content_filter" in said:
            raise QuestionError(said) from None
        if (status in _PASSING and "insufficient_quota" not in said) or status >= 500:
            return
        cure = _CURES.get(status, "see what it says of the request")
        raise self.give_up(f"answered {said}", cure) from None

    def _said(self, error: openai.APIStatusError) -> str:
        return f"{error.status_code}: {self._clean(error.response.text)[:_MAX_SAID]}"

    def _pause_s(self, attempt: int, asked_s: float) -> float:
        """Doubled with each attempt, from half to all of it by chance; never less than asked for."""
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * self._rng.uniform(0.5, 1.0)
        return max(pause_s, min(asked_s, LONGEST_RETRY_AFTER_S))

    def _cleaned(self, completion: Completion) -> Completion:
        """Without the key, which a server that echoes its headers must not bring into a file."""
        first, *_ = completion.choices
        said = first.message
        said = msgspec.structs.replace(
            said,
            content=self._clean(said.content or ""),
            refusal=self._clean(said.refusal or ""),
        )
        choice = msgspec.structs.replace(first, message=said)
        return msgspec.structs.replace(completion, choices=[choice])

    def _clean(self, text: str) -> str:
        """`text` without the key."""
        is_secret = self._key != NO_KEY and len(self._key) >= _MIN_KEY
        return text.replace(self._key, "***") if is_secret else text


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
