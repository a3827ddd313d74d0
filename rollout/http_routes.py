"""The two ways to ask a server for tokens: how a request is written, and a reply read.

`GENERATE` is vLLM's route for tokens alone, which tells the weights that sampled each token.
`COMPLETIONS` is the OpenAI route, with the additions by which vLLM returns token ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rollout.types import Sampling

# What vLLM writes where a sampled token has no log-prob.
_NO_LOGPROB = -9999.0


@dataclass(slots=True, kw_only=True, frozen=True)
class Asked:
    """A request. `num_tops`: of how many tokens, the likeliest ones, log-probs are returned, too."""

    model: str
    prompt: Sequence[int]
    sampling: Sampling
    priority: int = 0
    salt: str = "0"
    num_tops: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class Reply:
    """N sampled tokens. `tops`: at each position, log-probs of the likeliest tokens, by name."""

    token_ids: list[int]
    logprobs: list[float]
    tops: list[dict[str, float]]
    finish_reason: str
    """`stop`, `length` or `abort`."""
    versions: list[tuple[str, int, int]] | None
    """(version, start, end) of each run of tokens; None where the server does not tell."""
    prompt_ids: list[int] | None
    """What the server understood as the prompt, where it says so."""
    num_cached: int
    """Tokens of the prompt that it had in a cache, where it says so."""


class UnreadableReply(ValueError):
    """An answer without token ids, or without log-probs: what is lacking, and how to get it."""


@dataclass(slots=True, frozen=True)
class Route:
    """`body` writes a request; `read` reads the answer and raises UnreadableReply."""

    path: str
    body: Callable[[Asked], dict[str, Any]]
    read: Callable[[bytes], Reply]


class _Cached(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens_details: _Cached | None = None

    @property
    def num_cached(self) -> int:
        return (self.prompt_tokens_details or _Cached()).cached_tokens or 0


class _Top(msgspec.Struct, frozen=True):
    token_id: int
    logprob: float


class _Position(msgspec.Struct, frozen=True):
    token_id: int
    logprob: float
    top_logprobs: list[_Top] = []


class _Positions(msgspec.Struct, frozen=True):
    content: list[_Position] | None = None


class _Version(msgspec.Struct, frozen=True):
    version: str
    start: int
    end: int


class _TokensChoice(msgspec.Struct, frozen=True):
    token_ids: list[int] | None = None
    logprobs: _Positions | None = None
    finish_reason: str | None = None
    weight_versions: list[_Version] | None = None


class _Tokens(msgspec.Struct, frozen=True):
    choices: list[_TokensChoice]
    usage: _Usage | None = None


class _TextLogprobs(msgspec.Struct, frozen=True):
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _TextChoice(msgspec.Struct, frozen=True):
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _TextLogprobs | None = None
    finish_reason: str | None = None


class _Text(msgspec.Struct, frozen=True):
    choices: list[_TextChoice]
    usage: _Usage | None = None


def _sampling(asked: Asked) -> dict[str, Any]:
    """What both routes call alike. Seeds stay here: vLLM ends on a CPU once it computes a prompt that
    has one in parts, and a server does not tell what it runs on."""
    return {
        "max_tokens": asked.sampling.max_tokens,
        "temperature": asked.sampling.temperature,
        "stop_token_ids": list(asked.sampling.stop_token_ids),
        "ignore_eos": True,  # only what the request names ends it
        "logprobs": asked.num_tops,  # with 0, that of the sampled token alone
        # A server's own defaults, which may be those of the model's directory, are not ours.
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _generate_body(asked: Asked) -> dict[str, Any]:
    return {
        "model": asked.model,
        "token_ids": list(asked.prompt),
        "sampling_params": {**_sampling(asked), "detokenize": False},
        "priority": asked.priority,
        "cache_salt": asked.salt,
    }


def _completions_body(asked: Asked) -> dict[str, Any]:
    return {
        **_sampling(asked),
        "model": asked.model,
        "prompt": list(asked.prompt),
        "priority": asked.priority,
        "cache_salt": asked.salt,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,  # names of tokens that no two share
    }


def _read_generate(answer: bytes) -> Reply:
    reply = _decoded(answer, _Tokens)
    choice = reply.choices[0]
    positions = (choice.logprobs or _Positions()).content
    return _checked(
        Reply(
            token_ids=_present(choice.token_ids),
            logprobs=[one.logprob for one in positions or []],
            tops=[
                {str(top.token_id): top.logprob for top in one.top_logprobs}
                for one in positions or []
            ],
            finish_reason=choice.finish_reason or "",
            versions=[(one.version, one.start, one.end) for one in choice.weight_versions or []],
            prompt_ids=None,
            num_cached=(reply.usage or _Usage()).num_cached,
        )
    )


def _read_completions(answer: bytes) -> Reply:
    reply = _decoded(answer, _Text)
    choice = reply.choices[0]
    logprobs = choice.logprobs or _TextLogprobs()
    found = [_NO_LOGPROB if one is None else one for one in logprobs.token_logprobs]
    return _checked(
        Reply(
            token_ids=_present(choice.token_ids),
            logprobs=found,
            tops=[one or {} for one in logprobs.top_logprobs or []],
            finish_reason=choice.finish_reason or "",
            versions=None,
            prompt_ids=choice.prompt_token_ids,
            num_cached=(reply.usage or _Usage()).num_cached,
        )
    )


def _decoded(answer: bytes, kind: Any) -> Any:
    try:
        reply = msgspec.json.decode(answer, type=kind)
    except (ValueError, RecursionError) as error:
        raise UnreadableReply(f"its answer is no reply: {error}") from error
    if len(reply.choices) != 1:
        raise UnreadableReply(f"its answer has {len(reply.choices)} choices, and one was asked for")
    return reply


def _present(token_ids: list[int] | None) -> list[int]:
    if token_ids is None:
        raise UnreadableReply(
            "it returns no token ids, and text cannot be turned back into the tokens that were sampled: "
            "use a vLLM server, started with --enable-scale-out"
        )
    return token_ids


def _checked(reply: Reply) -> Reply:
    has_all = len(reply.logprobs) == len(reply.token_ids) and _NO_LOGPROB not in reply.logprobs
    if not has_all:
        raise UnreadableReply(
            f"it returns {len(reply.logprobs)} log-probs for {len(reply.token_ids)} sampled tokens, or "
            "none for some of them: use a server that gives the log-prob of each sampled token"
        )
    return reply


GENERATE = Route("/inference/v1/generate", _generate_body, _read_generate)
COMPLETIONS = Route("/v1/completions", _completions_body, _read_completions)
