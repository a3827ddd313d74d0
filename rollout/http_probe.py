"""What a server can do, found out by asking it before anything is sampled from it.

A server is refused, with the cure, where its replies could not be trained on or measured: no token
ids, log-probs of another distribution than that sampled from, a shorter context than asked for, or
different answers to one question.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, replace

import msgspec

from configs.schema import EngineSection
from rollout.engine import EngineError
from rollout.http_client import Client, RequestFailed
from rollout.http_routes import COMPLETIONS, GENERATE, Asked, Reply, Route, UnreadableReply
from rollout.types import Sampling

logger = logging.getLogger(__name__)

START = "start vLLM with --enable-scale-out --logprobs-mode processed_logprobs"
"""The cure for most of what is refused."""
STEER = (
    "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment and --enable-scale-out "
    "--worker-extension-cls rollout.vllm_api.Worker "
    """--weight-transfer-config '{"backend": "millrace_file"}'"""
)
"""The cure where weights cannot be updated."""

# All probes together; a server's first request may wait for its compiler.
_PROBE_S = 120.0
# An update of another run holds a server for less.
_PAUSED_S = 10.0
# Log-probs of one prompt differ by less, however it was batched; in bfloat16, too.
_SAME = 0.1
# Likeliest tokens that are compared between temperatures; OpenAI's route returns no more.
_NUM_TOPS = 5
# Differences of log-probs below this tell nothing.
_FLAT = 0.02


@dataclass(slots=True, kw_only=True, frozen=True)
class Found:
    """A server as it is."""

    route: Route
    model: str
    is_steered: bool
    """Its weights can be updated, and it tells which ones sampled a token."""
    takes_priority: bool
    served: str
    """The name that it gives the weights it has; empty where it does not tell."""


class _Model(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


async def study(
    client: Client,
    section: EngineSection,
    *,
    vocab_size: int,
    max_context_tokens: int,
    needs_updates: bool,
) -> Found:
    """Ask a server what it is; raises EngineError for one that cannot be used."""
    within_s = section.http.retry_s + _PROBE_S  # it may be starting, for the former
    try:
        async with asyncio.timeout(within_s):
            model = await _model(client, section.http.model, max_context_tokens)
            await _check_goes_on(client)
            return await _studied(client, model, vocab_size=vocab_size, needs_updates=needs_updates)
    except RequestFailed as failure:
        raise EngineError(str(failure)) from failure
    except TimeoutError as error:
        raise EngineError(
            f"{client.url} did not answer all that it was asked within {within_s:g} s: see its log; or, "
            f"{_left_paused(client)}"
        ) from error


async def _check_goes_on(client: Client) -> None:
    """Raise EngineError for a server that somebody paused and left; one without control is not asked."""
    until = time.monotonic() + _PAUSED_S
    while True:
        try:
            said = msgspec.json.decode(await client.ask("/is_paused"))
        except (RequestFailed, msgspec.DecodeError):
            return
        if not isinstance(said, dict) or said.get("is_paused") is not True:
            return
        if time.monotonic() > until:
            raise EngineError(f"{client.url} is paused: {_left_paused(client)}")
        await asyncio.sleep(0.5)


def _left_paused(client: Client) -> str:
    return f"if a run that was killed in an update left it paused, POST {client.url}/resume lets it go on"


async def _studied(client: Client, model: str, *, vocab_size: int, needs_updates: bool) -> Found:
    probe = Asked(
        model=model,
        prompt=[one % vocab_size for one in (1, 2, 3, 5, 8)],
        sampling=Sampling(max_tokens=1, temperature=0),
        num_tops=_NUM_TOPS,
    )
    route, first = await _route(client, probe)
    second = await _reply(client, route, probe)
    _check_alike(client.url, first, second)
    await _check_temperature(client, route, probe)
    version = first.versions[0][0] if first.versions else ""
    is_steered = route is GENERATE and await _is_steered(client)
    if needs_updates and not is_steered:
        raise EngineError(
            f"{client.url}: a training run has to update the server's weights, and this one's are fixed: "
            f"{STEER}; or only evaluate: launch.py eval"
        )
    return Found(
        route=route,
        model=model,
        is_steered=is_steered,
        takes_priority=await _takes_priority(client, route, probe),
        served=version,
    )


async def study_all(
    section: EngineSection, *, vocab_size: int, max_context_tokens: int, needs_updates: bool
) -> None:
    """Raise EngineError unless every server of a run can be used."""

    async def one(url: str) -> None:
        client = Client(url, section.http)
        try:
            await study(
                client,
                section,
                vocab_size=vocab_size,
                max_context_tokens=max_context_tokens,
                needs_updates=needs_updates,
            )
        finally:
            await client.close()

    outcomes = await asyncio.gather(*map(one, section.http.urls), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def _model(client: Client, wanted: str, max_context_tokens: int) -> str:
    """The name of the model to ask for."""
    answer = await client.insist("/v1/models", says_so=True)
    try:
        models = {one.id: one for one in msgspec.json.decode(answer, type=_Models).data}
    except ValueError as error:
        raise EngineError(
            f"{client.url}: /v1/models is no list of models ({error}): see that engine.http.urls names "
            "a vLLM server, without a path"
        ) from error
    if not models or (wanted and wanted not in models):
        raise EngineError(
            f"{client.url} serves {', '.join(models) or 'no model'}: set engine.http.model to one of "
            f"its names (it is {wanted!r}), or leave it empty for the first"
        )
    model = models[wanted] if wanted else next(iter(models.values()))
    if model.max_model_len is not None and model.max_model_len < max_context_tokens:
        raise EngineError(
            f"{client.url}: its contexts end at {model.max_model_len} tokens, and "
            f"rollout.max_context_tokens={max_context_tokens}: start it with --max-model-len "
            f"{max_context_tokens}, or lower the latter"
        )
    return model.id


async def _route(client: Client, probe: Asked) -> tuple[Route, Reply]:
    """The better route that the server has, and its reply to `probe`."""
    try:
        return GENERATE, await _reply(client, GENERATE, probe)
    except RequestFailed as failure:
        if failure.status not in (403, 404, 405, 501):
            raise
    try:
        reply = await _reply(client, COMPLETIONS, probe)
    except RequestFailed as failure:
        raise EngineError(
            f"{client.url} has no {GENERATE.path}, and its {COMPLETIONS.path} does not take token ids or "
            f"log-probs ({failure.said}): {START}"
        ) from failure
    if reply.prompt_ids is not None and reply.prompt_ids != list(probe.prompt):
        raise EngineError(
            f"{client.url}: it was asked to continue {list(probe.prompt)} and continued "
            f"{reply.prompt_ids}: {START}"
        )
    return COMPLETIONS, reply


async def _reply(client: Client, route: Route, asked: Asked) -> Reply:
    """One reply; raises RequestFailed, and EngineError for one that is unreadable."""
    answer = await client.ask(route.path, route.body(asked))
    try:
        reply = route.read(answer)
    except UnreadableReply as error:
        raise EngineError(f"{client.url}: {route.path}: {error}") from error
    if len(reply.token_ids) != asked.sampling.max_tokens or not reply.tops:
        raise EngineError(
            f"{client.url}: {route.path} was asked for {asked.sampling.max_tokens} token and the "
            f"{asked.num_tops} likeliest ones, and gave {len(reply.token_ids)} and "
            f"{len(reply.tops[0]) if reply.tops else 0}: {START}"
        )
    return reply


def _check_alike(url: str, first: Reply, second: Reply) -> None:
    """A greedy reply is the same twice, but for rounding."""
    difference = abs(first.logprobs[0] - second.logprobs[0])
    if difference > _SAME:
        raise EngineError(
            f"{url}: the same prompt gave log-probs that differ by {difference:.2g}, greedily: name one "
            "server in engine.http.urls, not what shares requests out to several"
        )


async def _check_temperature(client: Client, route: Route, probe: Asked) -> None:
    """Log-probs are those of the distribution that is sampled from.

    At half the temperature the difference between two tokens' log-probs doubles, and stays as it is
    where they are taken before the temperature acts. That holds for whatever token is sampled, so one
    reply at each is enough. Logits double, too, and so do their own values; the likeliest token's
    log-prob L does not: at half the temperature it is at least 2 L + |L|.
    """
    warm, cold = [
        (await _reply(client, route, replace(probe, sampling=one))).tops[0]
        for one in (
            Sampling(max_tokens=1, temperature=1.0),
            Sampling(max_tokens=1, temperature=0.5),
        )
    ]
    common = sorted(warm.keys() & cold.keys(), key=lambda name: warm[name])
    if len(common) < 2:
        raise EngineError(
            f"{client.url}: {route.path} gives too few of the likeliest tokens: {START}"
        )
    low, high = common[0], common[-1]
    was, now = warm[high] - warm[low], cold[high] - cold[low]
    if was > _FLAT and abs(now - 2 * was) > abs(now - was):
        raise EngineError(
            f"{client.url}: its log-probs are those before the temperature acts (two tokens' differ by "
            f"{was:.4g} at temperature 1 and by {now:.4g} at 0.5, not by {2 * was:.4g}), and a learner "
            f"would take them for those of the distribution sampled from: {START}"
        )
    are_logits = cold[high] < 1.5 * warm[high]
    if max(*warm.values(), *cold.values()) > 1e-3 or (are_logits and warm[high] < -_FLAT):
        raise EngineError(f"{client.url}: what it gives as log-probs are logits: {START}")


async def _is_steered(client: Client) -> bool:
    """Whether its weights can be updated by files."""
    try:
        await client.ask("/weight_info")
        # Nothing but our own way of loading begins with nothing; none is harmed by the question.
        await client.ask("/init_weight_transfer_engine", {"init_info": {}})
    except RequestFailed as failure:
        logger.debug("its weights are fixed: %s", failure)
        return False
    return True


async def _takes_priority(client: Client, route: Route, probe: Asked) -> bool:
    """Whether requests may overtake others: a server without such a policy refuses them."""
    try:
        await _reply(client, route, replace(probe, priority=1))
    except RequestFailed as failure:
        logger.info("requests are served in order (%s): --scheduling-policy priority", failure)
        return False
    return True
