"""A server that somebody else runs as the engine: tokens in and out, and new weights, over HTTP.

    generate -------> the server's route for tokens; a try that fails is made anew, up to retry_s
    update_weights -> pause, start, update (the file's path), finish with the version, resume

The server reads published files itself, so it must see the same paths. One that was started anew has
its first weights again: before a request is asked once more, those served last are loaded. One whose
weights are fixed can be evaluated: what it serves then counts as the version it was started with.

Everybody who uses the server is paused with us, and no reply of a server in doubt is taken.
"""

import asyncio
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from configs.schema import EngineSection
from rollout.busy import BusyClock
from rollout.engine import (
    EngineError,
    EngineStop,
    Generation,
    UpdateMode,
    UpdateReport,
    check_context,
    check_sampling,
    checked_prompt,
)
from rollout.http_client import Client, Patience, RequestFailed
from rollout.http_probe import STEER, Found, study
from rollout.http_routes import Asked, Reply, UnreadableReply
from rollout.shapes import shapes_of
from rollout.types import EngineStats, Sampling, Span
from rollout.vllm_words import PAUSES, generation, spans_of
from rollout.weights import REFUSAL, Manifest, WeightsError, checksum

logger = logging.getLogger(__name__)

# What vLLM says of an update that was begun and neither failed nor ended.
_IS_ACTIVE = "already active"
# What vLLM calls the weights that it was started with.
_UNNAMED = "default"
# How long a server is asked to go on after an update, however that went.
_RESUME_S = 5.0

_ABORTED = Generation(
    token_ids=np.zeros(0, dtype=np.int32),
    logprobs=np.zeros(0, dtype=np.float32),
    spans=[],
    stop=EngineStop.ABORTED,
)


class _Info(msgspec.Struct, frozen=True):
    weight_version: str


class HttpEngine:
    """`rollout.engine.Engine` on a server. Made by `start`, ended by `close`; belongs to one event loop."""

    def __init__(
        self,
        client: Client,
        found: Found,
        *,
        section: EngineSection,
        vocab_size: int,
        num_parameters: int,
        max_context_tokens: int,
        version: int,
    ) -> None:
        self._client = client
        self._found = found
        self._options = section.http
        self._vocab_size = vocab_size
        self._num_parameters = num_parameters
        self._max_context_tokens = max_context_tokens
        self._version = version
        self._loaded: Manifest | None = None
        """Of the weights that are served; None while they are those that the server came with."""
        self._known = {str(version)}
        """Names of the weights that this engine had the server load."""
        self._kept: set[int] = set()
        """Versions whose update left running requests their old caches."""
        self._end_reason = ""
        """Why no call is served any more; empty while they are."""
        self._doubt = ""
        """Why nobody knows the server's weights; empty where they are known."""
        self._update_lock = asyncio.Lock()
        self._running: set[asyncio.Task[Generation]] = set()
        self._is_paused = False
        self._clock = BusyClock()
        self._num_prompt = self._num_cached = self._num_sampled = 0

    @classmethod
    async def start(
        cls,
        model_path: str | Path,
        *,
        url: str,
        section: EngineSection,
        max_context_tokens: int,
        version: int = 0,
        needs_updates: bool = True,
    ) -> "HttpEngine":
        """Find out what the server at `url` can do, and let it serve the model's weights as `version`.

        Raises EngineError, for one whose weights are fixed only where it `needs_updates`.
        """
        path = Path(model_path)
        config, shapes, manifest = await asyncio.to_thread(_model, path, version)
        check_context(max_context_tokens, config.get("max_position_embeddings", max_context_tokens))
        client = Client(url, section.http)
        try:
            found = await study(
                client,
                section,
                vocab_size=config["vocab_size"],
                max_context_tokens=max_context_tokens,
                needs_updates=needs_updates,
            )
            engine = cls(
                client,
                found,
                section=section,
                vocab_size=config["vocab_size"],
                num_parameters=sum(map(math.prod, shapes.values())),
                max_context_tokens=max_context_tokens,
                version=version,
            )
            await engine._begin(path, manifest)
        except BaseException:
            await client.close()
            raise
        return engine

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_parameters(self) -> int:
        return self._num_parameters

    @property
    def pids(self) -> list[int]:
        """None: the server's processes are not ours."""
        return []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        """Sample a reply. Lower `priority` values go first. Raises EngineError.

        The seed is not used: vLLM ends on a CPU at some requests with one.
        """
        check_sampling(sampling)
        # A token that the model lacks ends the server.
        prompt = checked_prompt(
            prompt_ids, vocab_size=self._vocab_size, max_context_tokens=self._max_context_tokens
        ).tolist()
        room = self._max_context_tokens - len(prompt)
        asked = Asked(
            model=self._found.model,
            prompt=prompt,
            sampling=msgspec.structs.replace(sampling, max_tokens=min(room, sampling.max_tokens)),
            priority=priority if self._found.takes_priority else 0,
        )
        task = asyncio.create_task(self._generate(asked))
        self._running.add(task)
        self._note_busy()
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return _ABORTED  # by `close`
        finally:
            self._running.discard(task)
            self._note_busy()

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        """Swap in the weights of `manifest`; all or nothing. Raises EngineError, WeightsError."""
        async with self._update_lock:
            if self._end_reason:
                raise EngineError(self._end_reason)
            if not self._found.is_steered:
                raise EngineError(f"{self._client.url}: the server's weights are fixed: {STEER}")
            if self._doubt:
                await self._check_started_anew()
            if manifest.version <= self._version:
                raise WeightsError(
                    f"version {manifest.version} is not newer than {self._version}, which is served"
                )
            return await self._load(manifest, mode)

    def stats(self) -> EngineStats:
        """As far as it is seen from here: of the server's cache nothing is, and all requests run."""
        return EngineStats(
            version=self._version,
            running=len(self._running),
            waiting=0,
            cached_rows=0,
            kv_used_frac=0.0,
            prompt_tokens=self._num_prompt,
            prefix_hit_tokens=self._num_cached,
            sampled_tokens=self._num_sampled,
            recomputed_tokens=0,
            busy_s=self._clock.total_s,
            cpu_s=time.process_time(),
        )

    def take_busy(self) -> list[tuple[float, float]]:
        """Intervals (start, end) of `time.monotonic()` with requests since the last call."""
        return self._clock.take()

    async def close(self) -> None:
        """Leave the server as it is; what runs or waits is returned as aborted. May be called twice."""
        self._end_reason = self._end_reason or "the engine is closed"
        for task in self._running:
            task.cancel()
        async with self._update_lock:  # an update that is cut off could leave the server paused
            await self._client.close()

    async def _begin(self, path: Path, manifest: Manifest | None) -> None:
        """Let the server serve the weights of the model's directory, if it can be told to."""
        about = f"{self._client.url} as version {self._version}"
        if not self._found.is_steered:
            self._known = {self._found.served}
            logger.warning("the weights of %s are whatever it was started with", about)
        elif manifest is not None:
            try:
                await self._load(manifest, UpdateMode.RECOMPUTE)
            except WeightsError as error:
                raise EngineError(
                    f"{self._client.url} cannot load the weights of {path} ({error}): start it with that "
                    "model and model.dtype, and let it see the same files at the same path"
                ) from error
        elif self._found.served == _UNNAMED:
            await self._client.insist("/update_weight_version", {"new_version": str(self._version)})
            logger.warning(
                "the weights of %s are those it was started with: %s has several files", about, path
            )
        else:
            raise EngineError(
                f"{self._client.url} serves weights of an earlier run, and {path} has several files, of "
                "which only one could be sent: start the server anew, or save the model as one file"
            )

    async def _generate(self, asked: Asked) -> Generation:
        patience = Patience(self._options.retry_s)
        while True:
            self._check()
            version = self._version
            try:
                reply = await self._reply(replace(asked, salt=str(version)))
                break
            except RequestFailed as failure:
                self._check()
                await patience.wait(failure)
                await self._restore()
        self._check()
        self._num_prompt += len(asked.prompt)
        self._num_cached += reply.num_cached
        self._num_sampled += len(reply.token_ids)
        return self._generation(reply, asked.sampling, version)

    def _check(self) -> None:
        if reason := self._end_reason or self._doubt:
            raise EngineError(reason)

    async def _reply(self, asked: Asked) -> Reply:
        """What the server samples; raises RequestFailed, also for weights that nobody loaded."""
        url, route = self._client.url, self._found.route
        answer = await self._client.ask(route.path, route.body(asked))
        try:
            reply = route.read(answer)
        except UnreadableReply as error:
            raise EngineError(f"{url}: {route.path}: {error}") from error
        strange = {version for version, _, _ in reply.versions or []} - self._known
        if strange and not self._found.is_steered:
            raise EngineError(
                f"{url}: somebody gave the server the weights {sorted(strange)} while they were thought to "
                f"be fixed: {STEER}"
            )
        if strange:
            said = f"it sampled with weights {sorted(strange)}, which this run did not load"
            raise RequestFailed(
                url, 0, f"{said}: it was started anew, or another program updates it"
            )
        return reply

    async def _restore(self) -> None:
        """After a failure: let a server that was started anew have the weights that it lost."""
        if not self._found.is_steered:
            return
        async with self._update_lock:
            self._check()
            try:
                served = await self._served()
                if served == str(self._version):
                    return
                if self._loaded is None:
                    raise WeightsError("it came with weights that are not in one file")
                logger.warning(
                    "%s serves %r: it is given version %d", self._client.url, served, self._version
                )
                await self._load(self._loaded, UpdateMode.RECOMPUTE)
            except RequestFailed:
                return  # the next try finds out
            except EngineError as error:
                failure = error.__cause__
                if self._doubt or not (isinstance(failure, RequestFailed) and failure.may_pass):
                    raise
                logger.warning("tried again: %s", error)
            except WeightsError as error:
                raise EngineError(
                    f"{self._client.url} lost version {self._version}, and it cannot be loaded again: {error}"
                ) from error

    async def _check_started_anew(self) -> None:
        """Raise EngineError while the server may hold parts of two versions.

        Nothing can be loaded over them: a layer of which half came takes what is next for its other half.
        """
        try:
            if await self._served() == _UNNAMED:
                return
        except RequestFailed as failure:
            raise EngineError(f"{self._doubt}: {failure}") from failure
        raise EngineError(self._doubt)

    async def _served(self) -> str:
        """What the server calls the weights that it has; raises RequestFailed."""
        answer = await self._client.ask("/weight_info")
        return msgspec.json.decode(answer, type=_Info).weight_version

    async def _load(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        """Load weights, whose version need not be new; the server goes on, however that ends."""
        about = f"{self._client.url}: version {manifest.version}"
        try:
            began, load_s = await self._swap(about, manifest, mode)
        except BaseException as error:
            stuck = await self._resume()
            if stuck and isinstance(error, WeightsError):
                raise EngineError(f"{about} was refused ({error}), and {stuck}") from error
            raise
        if stuck := await self._resume():
            raise EngineError(f"{about} was loaded, and {stuck}")
        return UpdateReport(
            version=manifest.version, load_s=load_s, stall_s=time.perf_counter() - began
        )

    async def _swap(self, about: str, manifest: Manifest, mode: UpdateMode) -> tuple[float, float]:
        """Pause and load; when nothing was computed any more, and how long loading took."""
        way, clears_cache = PAUSES[mode]
        is_touched = False
        try:
            # As long as replies take, where they are waited for.
            async with asyncio.timeout(None if mode is UpdateMode.DRAIN else self._timeout_s):
                # Twice paused is paused.
                wanted = {"mode": way, "clear_cache": str(clears_cache).lower()}
                await self._client.insist("/pause", {}, query=wanted)
            self._note_busy(is_paused=True)
            began = time.perf_counter()
            async with asyncio.timeout(self._timeout_s):
                await self._begin_update()
                told = {"update_info": {"manifest": msgspec.to_builtins(manifest)}}
                await self._post("/update_weights", told)
                is_touched = True
                await self._post("/finish_weight_update", {"weight_version": str(manifest.version)})
        except RequestFailed as failure:
            _, marker, reason = failure.said.partition(REFUSAL)
            if marker and not is_touched:
                raise WeightsError(reason.rstrip("'\"")) from failure
            raise self._failed(f"{about} was not loaded: {failure}", is_touched) from failure
        except EngineError as error:
            raise self._failed(f"{about} was not loaded: {error}", is_touched) from error
        except TimeoutError as error:
            late = f"not within engine.http.update_timeout_s={self._timeout_s:g}"
            raise self._failed(f"{about} was not loaded: {late}", is_touched) from error
        except asyncio.CancelledError:
            self._failed(f"{about} was not loaded: it was cancelled", is_touched)
            raise
        # Before anything is sampled with them.
        self._note_version(manifest, is_kept=mode is UpdateMode.KEEP)
        return began, time.perf_counter() - began

    @property
    def _timeout_s(self) -> float:
        return self._options.update_timeout_s

    async def _begin_update(self) -> None:
        """Begin an update, or take up one of which the end was not heard: what it staged is replaced."""
        try:
            await self._post("/start_weight_update")
        except RequestFailed as failure:
            if _IS_ACTIVE not in failure.said:
                raise

    async def _post(self, path: str, body: object = None) -> None:
        await self._client.ask(path, {} if body is None else body)

    def _failed(self, why: str, is_touched: bool) -> EngineError:
        """The error to raise; no reply is taken any more of a server that may hold parts of both."""
        if is_touched:
            self._doubt = (
                f"{why}. Whether the server has old weights, new ones or parts of both is unknown: start "
                "it anew, and load a version"
            )
        return EngineError(self._doubt if is_touched else why)

    async def _resume(self) -> str:
        """Let the server go on; what is to be said where that failed."""
        try:
            async with asyncio.timeout(_RESUME_S):
                await self._client.insist("/resume", {}, retry_s=_RESUME_S)
        except (EngineError, TimeoutError) as error:
            said = str(error) or f"it did not answer within {_RESUME_S:g} s"
            stuck = f"the server may stay paused, which POST {self._client.url}/resume ends: {said}"
            logger.warning("%s", stuck)
            return stuck
        finally:
            self._note_busy(is_paused=False)
        return ""

    def _note_version(self, manifest: Manifest, *, is_kept: bool) -> None:
        self._loaded = manifest
        self._version = manifest.version
        self._known.add(str(manifest.version))
        self._doubt = ""
        if is_kept:
            self._kept.add(manifest.version)

    def _generation(self, reply: Reply, sampling: Sampling, version: int) -> Generation:
        """A reply to a request that was handed over while `version` was served."""
        url, count = self._client.url, len(reply.token_ids)
        if self._found.is_steered:
            versions = [(int(one), start, end) for one, start, end in reply.versions or []]
            spans = spans_of(versions, asked_at=version, kept=self._kept)
        else:
            spans = [Span(version, 0, count)] if count else []
        made = generation(reply.token_ids, reply.logprobs, spans, reply.finish_reason, who=url)
        last = reply.token_ids[-1:]
        if made.stop is EngineStop.STOP and last not in [[one] for one in sampling.stop_token_ids]:
            raise EngineError(
                f"{url} ended a reply at token {last}, which was not asked for: start it with "
                "--generation-config vllm"
            )
        return made

    def _note_busy(self, *, is_paused: bool | None = None) -> None:
        if is_paused is not None:
            self._is_paused = is_paused
        self._clock.note(bool(self._running) and not self._is_paused)


def _model(path: Path, version: int) -> tuple[dict, dict[str, tuple[int, ...]], Manifest | None]:
    """A model's configuration and shapes, and what publishes its weights if one file holds them."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise EngineError(
            f"model.path={str(path)!r} has no config.json to read: {error}"
        ) from error
    files = sorted(path.glob("*.safetensors"))
    manifest = None
    if len(files) == 1:
        data = files[0].read_bytes()
        manifest = Manifest(
            version=version,
            step=0,
            path=str(files[0].absolute()),
            num_bytes=len(data),
            checksum=checksum(data),
        )
    return config, shapes_of(path), manifest
