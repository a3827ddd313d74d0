"""vLLM as the engine: its front end in the actor's process, its model in processes of its own.

    generate ---> Core.sample ---> vLLM's processes
    update_weights ---> pause, start, update, finish with the version, resume; all with a deadline

An engine that died, or that did not take new weights in time, is replaced: another is started, loads
the weights that were served last, and requests that were under way are asked anew. So a caller waits
longer and loses nothing. One that dies again and again without a reply in between fails for good.

Nothing here knows vLLM's own API; `rollout.vllm_api` does, and is imported when an engine starts.
"""

import asyncio
import itertools
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import EngineSection
from rollout.busy import BusyClock
from rollout.deadlines import Deadline
from rollout.engine import (
    EngineError,
    Generation,
    UpdateMode,
    UpdateReport,
    check_sampling,
    checked_prompt,
)
from rollout.shapes import shapes_of
from rollout.types import EngineStats, Sampling
from rollout.vllm_setup import import_api
from rollout.vllm_start import start_core
from rollout.vllm_words import PAUSES, generation, spans_of
from rollout.weights import Endpoint, Manifest, WeightsError

if TYPE_CHECKING:
    from rollout.vllm_api import Core, Reply

logger = logging.getLogger(__name__)

# Replacements in a row, without a reply in between, after which an engine has failed.
_MAX_REPLACEMENTS = 3
# Between tries to start another one: whatever was in the way may go away.
_PAUSES_S = (1.0, 5.0)
# Deaths of engines in the middle of one request, after which that is not asked again.
_MAX_DEATHS = 3


class VllmEngine:
    """`rollout.engine.Engine` on vLLM. Made by `start`, ended by `close`; belongs to one event loop."""

    def __init__(
        self,
        api: Any,
        make_core: "Callable[[], Core]",
        *,
        model_path: Path,
        section: EngineSection,
        max_context_tokens: int,
        version: int,
        log: Path | None,
    ) -> None:
        self._api = api
        self._make_core = make_core
        self._max_context_tokens = max_context_tokens
        self._vocab_size = _vocab_size(model_path)
        self._num_parameters = sum(map(math.prod, shapes_of(model_path).values()))
        self._timeout_s = section.vllm.update_timeout_s
        self._start_timeout_s = section.vllm.start_timeout_s
        self._start_version = version
        self._log = log
        self._version = version
        self._manifest: Manifest | None = None
        """Of the weights that are served; None while they are those of the model's directory."""
        self._kept: set[int] = set()
        """Versions whose update left running requests their old caches."""
        self._core: Core | None = None
        """None while another one is started."""
        self._joined: Core | None = None
        """The core that weights can be sent to."""
        self._is_settled = asyncio.Event()
        """Set while there is a core, or will never be one again."""
        self._replacing: asyncio.Task[None] | None = None
        self._num_replaced = 0
        self._end_reason = ""
        """Why no call is served any more; empty while they are."""
        self._why_replaced = ""
        self._dead: Core | None = None
        """The last core that ended by itself."""
        self._closing = asyncio.Event()
        self._resuming: set[asyncio.Task[None]] = set()
        self._gone = api.Counts()
        """Of the cores before this one."""
        self._gone_cpu_s = 0.0
        self._update_lock = asyncio.Lock()
        self._loading: Manifest | None = None
        """What an update under way loads; whoever replaces the core has it loaded."""
        self._deadline = Deadline()
        """Of a step of that update; cut short when the core is replaced, which will not answer."""
        self._names = map(str, itertools.count())
        self._asked: set[str] = set()
        """Requests that the core has."""
        self._is_idle = asyncio.Event()
        self._is_paused = False
        self._clock = BusyClock()

    @classmethod
    async def start(
        cls,
        model_path: str | Path,
        *,
        dtype: str,
        section: EngineSection,
        max_context_tokens: int,
        version: int = 0,
        log: Path | None = None,
        transport: str = "file",
        adapter: Path | None = None,
    ) -> "VllmEngine":
        """Load the model, whose weights are `version`; see `Core.start`. Raises EngineError."""
        api = await asyncio.to_thread(import_api, section)
        path = Path(model_path)
        make = partial(
            api.Core.start,
            path,
            dtype=dtype,
            section=section,
            max_context_tokens=max_context_tokens,
            transport=transport,
            adapter=adapter,
            log=log,
        )
        engine = await asyncio.to_thread(
            cls,
            api,
            make,
            model_path=path,
            section=section,
            max_context_tokens=max_context_tokens,
            version=version,
            log=log,
        )
        await engine._open(lambda: None)
        return engine

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_parameters(self) -> int:
        return self._num_parameters

    @property
    def pids(self) -> list[int]:
        """The processes that it computes in, as of now."""
        return self._core.pids if self._core is not None else []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        """Sample a reply. Lower `priority` values go first. Raises EngineError."""
        check_sampling(sampling)
        prompt = checked_prompt(
            prompt_ids,
            vocab_size=self._vocab_size,
            max_context_tokens=self._max_context_tokens,
        ).tolist()
        num_deaths = 0
        while True:
            core, version = await self._alive(), self._version
            name = next(self._names)
            self._asked.add(name)
            self._note_busy()
            try:
                reply = await core.sample(
                    name, prompt, sampling, priority=priority, salt=str(version)
                )
            except EngineError as error:
                if not core.is_dead or self._end_reason:
                    raise
                where = f" (see {self._log})" if self._log else ""
                self._replace(core, f"{error}{where}")
                num_deaths += core is self._dead
                if num_deaths == _MAX_DEATHS:
                    raise EngineError(
                        f"{num_deaths} engines died in the middle of this request of {len(prompt)} tokens, "
                        f"which is not asked again: {error}{where}"
                    ) from error
                continue
            finally:
                self._asked.discard(name)
                self._note_busy()
            self._num_replaced = 0
            return self._generation(reply, version)

    async def join(self, endpoint: Endpoint) -> None:
        """Meet the learner there: weights can be sent from then on. Raises EngineError."""
        core = await self._alive()
        try:
            await core.join(endpoint)
        except Exception as error:  # whatever vLLM raises for a group that does not form
            where = f"{endpoint.address}:{endpoint.port}"
            raise EngineError(f"vLLM could not meet the learner at {where}: {error}") from error
        self._joined = core

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        """Swap in the weights of `manifest`; all or nothing. Raises EngineError, WeightsError."""
        async with self._update_lock:
            if manifest.version <= self._version:
                raise WeightsError(
                    f"version {manifest.version} is not newer than {self._version}, which is served"
                )
            begun = time.perf_counter()
            # From here on: a core that is being started loads them, as the file of those served before
            # may be written anew at any moment.
            self._loading = manifest
            try:
                core = await self._alive()
                if self._version == manifest.version:
                    load_s = stall_s = time.perf_counter() - begun
                else:
                    load_s, stall_s = await self._load(core, manifest, mode)
            finally:
                self._loading = None
            return UpdateReport(version=manifest.version, load_s=load_s, stall_s=stall_s)

    async def _load(
        self, core: "Core", manifest: Manifest, mode: UpdateMode
    ) -> tuple[float, float]:
        """Update this core, or else another; seconds of loading and of the stall."""
        if manifest.is_sent and core is not self._joined:
            raise EngineError(
                f"version {manifest.version} cannot be sent: the engine was started anew after it had "
                "met the learner, or never met it"
            )
        begun = time.perf_counter()
        try:
            return await self._update(core, manifest, mode)
        except WeightsError:
            raise
        except Exception as error:  # whatever it was, the model may be half of each
            late = f"not done within engine.vllm.update_timeout_s={self._timeout_s:g}"
            said = str(error) or late if core is self._core else self._why_replaced
            if self._end_reason:
                raise EngineError(self._end_reason) from error
            self._replace(core, f"version {manifest.version}: {said}")
            await self._alive()
            if self._version != manifest.version:
                raise EngineError(f"version {manifest.version} was not loaded: {said}") from error
            seconds = time.perf_counter() - begun
            return seconds, seconds

    def stats(self) -> EngineStats:
        core = self._core
        counts = (core.counts if core is not None else self._api.Counts()).after(self._gone)
        running = min(counts.running, len(self._asked))
        return EngineStats(
            version=self._version,
            running=running,
            waiting=len(self._asked) - running,
            cached_rows=0,
            kv_used_frac=counts.kv_used_frac,
            prompt_tokens=counts.prompt,
            prefix_hit_tokens=counts.prefix_hit,
            sampled_tokens=counts.sampled,
            recomputed_tokens=counts.recomputed,
            busy_s=self._clock.total_s,
            cpu_s=time.process_time() + self._gone_cpu_s + self._api.cpu_seconds(self.pids),
        )

    def take_busy(self) -> list[tuple[float, float]]:
        """Intervals (start, end) of `time.monotonic()` with requests since the last call."""
        return self._clock.take()

    async def close(self) -> None:
        """End its processes; what runs or waits is returned as aborted. May be called twice."""
        self._end_reason = self._end_reason or "the engine is closed"
        self._closing.set()
        self._deadline.cut()  # nobody answers an update that is under way
        if self._resuming:
            await asyncio.wait(self._resuming)
        if self._replacing is not None and not self._replacing.done():
            await self._replacing
        core, self._core = self._core, None
        if core is None:
            return
        self._note_busy()
        try:
            async with asyncio.timeout(self._timeout_s):
                await core.abort(list(self._asked))
                await self._is_idle.wait()
        except BaseException as error:
            # Whatever it was, and even if nobody waits any more: no process may be left.
            core.kill()
            if not isinstance(error, Exception):
                raise
            said = str(error) or type(error).__name__
            logger.warning("vLLM is killed, as it did not end its requests: %s", said)
        finally:
            await core.close()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[None]:
        """A deadline for what a core is told; raises EngineError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError as error:
            raise EngineError(
                f"not done within engine.vllm.update_timeout_s={self._timeout_s:g}"
            ) from error

    async def _alive(self) -> "Core":
        """The core, once there is one; raises EngineError when there will be none."""
        while not self._end_reason:
            await self._is_settled.wait()
            if self._core is not None:  # it may have died while this waited for its turn
                return self._core
        raise EngineError(self._end_reason)

    async def _open(self, choose: "Callable[[], Manifest | None]") -> None:
        """Start another core, with what is chosen once it is there; None: the model's directory.

        Raises EngineError, and what loading raises.
        """
        core = await start_core(
            self._make_core, within_s=self._start_timeout_s, is_unwanted=self._closing
        )
        try:
            manifest = choose()
            async with self._bounded():
                await core.prepare(self._start_version)
                if manifest is not None:
                    await core.pause("keep", clears_cache=True)
                    await core.load(manifest)
                    await core.resume()
        except BaseException:
            core.kill()
            await core.close()
            raise
        if manifest is not None:
            self._note_version(manifest)
        self._core = core
        self._is_settled.set()
        self._note_busy()

    def _newest(self) -> Manifest | None:
        """What another core is to serve: weights on their way, if they are in a file, or those served."""
        if self._loading is not None and not self._loading.is_sent:
            return self._loading
        return self._manifest

    def _replace(self, core: "Core", why: str) -> None:
        """Begin to start another core; once for each core."""
        if core is not self._core:
            return
        self._gone = core.counts.after(self._gone)
        self._gone_cpu_s += self._api.cpu_seconds(core.pids)
        if core.is_dead:
            self._dead = core
        self._core = None
        self._is_settled.clear()
        self._note_busy()
        self._why_replaced = why
        self._deadline.cut()
        self._replacing = asyncio.create_task(self._start_another(core, why))

    async def _start_another(self, core: "Core", why: str) -> None:
        self._num_replaced += 1
        logger.warning("vLLM is started anew: %s", why)
        self._is_paused = False
        try:
            core.kill()
            await core.close()
            if self._num_replaced > _MAX_REPLACEMENTS:
                raise EngineError("it was started anew too often without a reply in between")
            if (now := self._newest()) is not None and now.is_sent:
                raise EngineError(
                    f"version {now.version} was sent, and is in no file to load again"
                )
            for pause_s in (*_PAUSES_S, None):
                try:
                    await self._open_newest()
                    return
                except Exception as error:
                    if pause_s is None or self._end_reason:
                        raise
                    logger.warning("vLLM is started once more in %g s: %s", pause_s, error)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._closing.wait()
        except BaseException as error:  # callers get the error, and none waits for ever
            reason = f"vLLM ended ({why}) and cannot be started again: {error}"
            self._end_reason = self._end_reason or reason
            self._is_settled.set()
            if not isinstance(error, Exception):
                raise

    async def _open_newest(self) -> None:
        """Start another core with new weights, or else with those served."""
        try:
            await self._open(self._newest)
        except Exception as error:
            if self._newest() is self._manifest or self._end_reason:
                raise
            logger.warning("new weights cannot be loaded: %s", error)
            await self._open(lambda: self._manifest)

    async def _update(
        self, core: "Core", manifest: Manifest, mode: UpdateMode
    ) -> tuple[float, float]:
        """The seconds that loading took, and that nothing was computed."""
        way, clears_cache = PAUSES[mode]
        is_touched = False
        try:
            if mode is UpdateMode.DRAIN:
                async with self._deadline.within(None):  # for as long as replies take
                    await core.pause(way, clears_cache=clears_cache)
            async with self._deadline.within(self._timeout_s):
                if mode is not UpdateMode.DRAIN:
                    await core.pause(way, clears_cache=clears_cache)
                self._note_pause(True)
                paused = time.perf_counter()
                is_touched = True
                await core.load(manifest)
                load_s = time.perf_counter() - paused
                # Before anything is sampled with them.
                self._note_version(manifest)
                if mode is UpdateMode.KEEP:
                    self._kept.add(manifest.version)
                await core.resume()
                return load_s, time.perf_counter() - paused
        except WeightsError:
            self._loading = None
            await self._resume(core)
            raise
        except asyncio.CancelledError:
            # Nobody waits any more. An engine that stays paused would be worse than a new one.
            self._loading = None
            if is_touched:
                self._replace(core, f"loading version {manifest.version} was cancelled")
            else:
                await self._resume(core)
            raise
        finally:
            self._note_pause(False)

    async def _resume(self, core: "Core") -> None:
        """Let a core go on, or replace it; that happens even if nobody waits for it any more."""

        async def go_on() -> None:
            try:
                async with self._bounded():
                    await core.resume()
            except Exception as error:  # noqa: BLE001 whatever it was, it may be paused for ever
                self._replace(core, f"it did not go on after a pause: {error}")

        task = asyncio.create_task(go_on())
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)
        await asyncio.shield(task)

    def _note_version(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._version = manifest.version

    def _generation(self, reply: "Reply", version: int) -> Generation:
        """A reply to a request that was handed over while `version` was served."""
        spans = spans_of(reply.versions, asked_at=version, kept=self._kept)
        return generation(reply.token_ids, reply.logprobs, spans, reply.finish_reason, who="vLLM")

    def _note_pause(self, is_paused: bool) -> None:
        self._is_paused = is_paused
        self._note_busy()

    def _note_busy(self) -> None:
        if self._asked:
            self._is_idle.clear()
        else:
            self._is_idle.set()
        is_computing = not self._is_paused and self._core is not None
        self._clock.note(bool(self._asked) and is_computing)


def _vocab_size(model: Path) -> int:
    try:
        return json.loads((model / "config.json").read_bytes())["vocab_size"]
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(
            f"model.path={str(model)!r} has no config.json that says vocab_size: {error!r}"
        ) from error
