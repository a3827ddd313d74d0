"""The embedded engine: continuous batching with torch in this process.

A thread owns the model and steps (`rollout.stepper`); torch releases the interpreter in its kernels,
so the event loop serves environments meanwhile. The loop side posts closures and awaits futures; the
thread runs the closures between steps, so that additions, aborts and weight updates are atomic.

    generate ---- mail ----> thread: take_mail, step, take_mail, step, ...
       ^                                        |
       +------------- futures, on the loop -----+

If the thread fails, every request and every later call gets an EngineError.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from configs.schema import EngineSection
from rollout.engine import (
    EngineError,
    Generation,
    UpdateMode,
    UpdateReport,
    check_context,
    check_sampling,
    checked_prompt,
)
from rollout.model import ModelError, load_model
from rollout.packing import use_packing
from rollout.staging import Memory, Staged, stage
from rollout.stepper import Ended, Request, Stepper
from rollout.types import EngineStats, Sampling
from rollout.weights import Manifest, WeightsError

# Computing intervals closer than this are reported as one.
_MERGE_S = 0.01

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class _Update:
    """A weight update that waits for its moment between two steps."""

    staged: Staged
    mode: UpdateMode
    done: "asyncio.Future[float]"
    """Resolved with the stall, in seconds."""


class LocalEngine:
    """`rollout.engine.Engine` on a model in this process. Made by `start`, ended by `close`.

    With `is_threaded=False` there is no thread: the caller drives `take_mail`, `apply_update` and
    `step`, so that a test decides what happens between which steps.
    """

    def __init__(
        self, model: PreTrainedModel, stepper: Stepper, *, threads: int, is_threaded: bool
    ) -> None:
        self._model = model
        self._memory = Memory()
        self._stepper = stepper
        self._max_context_tokens = stepper.store.max_tokens
        self._vocab_size: int = model.config.vocab_size
        self._loop = asyncio.get_running_loop()
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        # Owned by the loop: whoever awaits.
        self._requests: dict[Request, asyncio.Future[Generation]] = {}
        self._update_lock = asyncio.Lock()
        self.is_staged = asyncio.Event()
        """Set while new weights are read and wait for their moment."""
        self._updating: asyncio.Future[float] | None = None
        # Owned by the thread.
        self._update: _Update | None = None
        self._is_closing = False
        # Intervals computed in: the thread merges at the right end, `take_busy` empties from the left.
        self._busy: deque[tuple[float, float]] = deque(maxlen=100_000)
        self._busy_s = 0.0
        self._cpu_begun_s = time.process_time()
        self._end_reason = ""
        """Why no call is served any more; empty while they are."""
        self._thread = threading.Thread(
            target=self._run, args=(threads,), name="engine-step", daemon=True
        )
        self._is_threaded = is_threaded
        if is_threaded:
            self._thread.start()

    @classmethod
    async def start(
        cls,
        model_path: str | Path,
        *,
        dtype: str,
        section: EngineSection,
        max_context_tokens: int,
        version: int = 0,
        is_threaded: bool = True,
    ) -> "LocalEngine":
        """Load the model and be ready. Raises EngineError when it cannot be served."""
        try:
            model = await asyncio.to_thread(load_model, model_path, dtype)
        except ModelError as error:
            raise EngineError(str(error)) from error
        check_context(max_context_tokens, model.config.max_position_embeddings)
        await asyncio.to_thread(use_packing, model)
        stepper = Stepper(
            model, section=section, max_context_tokens=max_context_tokens, version=version
        )
        return cls(model, stepper, threads=section.threads, is_threaded=is_threaded)

    @property
    def version(self) -> int:
        return self._stepper.version

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def pids(self) -> list[int]:
        return []

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        """Sample a reply. Lower `priority` values go first. Raises EngineError."""
        self._check_alive()
        check_sampling(sampling)
        prompt = checked_prompt(
            prompt_ids,
            vocab_size=self._vocab_size,
            max_context_tokens=self._max_context_tokens,
        )
        request = Request(prompt=prompt, sampling=sampling, priority=priority)
        future: asyncio.Future[Generation] = self._loop.create_future()
        self._requests[request] = future
        self._mail.put(lambda: self._stepper.add(request))
        try:
            return await future
        finally:
            # Still there only when the caller was cancelled.
            if self._requests.pop(request, None) is not None:
                self._mail.put(lambda: self._forget(request))

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        """Swap in the weights of `manifest`; all or nothing. Raises EngineError, WeightsError."""
        async with self._update_lock:
            self._check_alive()
            if manifest.version <= self.version:
                raise WeightsError(
                    f"version {manifest.version} is not newer than {self.version}, which is served"
                )
            started = time.perf_counter()
            staged = await asyncio.to_thread(stage, self._model, manifest, self._memory)
            load_s = time.perf_counter() - started
            self._check_alive()
            update = _Update(staged=staged, mode=mode, done=self._loop.create_future())
            self._updating = update.done
            self.is_staged.set()
            self._mail.put(lambda: self._begin_update(update))
            try:
                stall_s = await update.done
            finally:
                self._updating = None
                self.is_staged.clear()
                self._mail.put(lambda: self._withdraw_update(update))
            return UpdateReport(version=manifest.version, load_s=load_s, stall_s=stall_s)

    def stats(self) -> EngineStats:
        stepper = self._stepper
        counters, running = stepper.counters, stepper.num_running
        return EngineStats(
            version=stepper.version,
            running=running,
            waiting=max(0, len(self._requests) - running),
            cached_rows=stepper.rows.num_cached,
            kv_used_frac=stepper.rows.used_frac,
            prompt_tokens=counters.prompt,
            prefix_hit_tokens=counters.prefix_hit,
            sampled_tokens=counters.sampled,
            recomputed_tokens=counters.recomputed,
            busy_s=self._busy_s,
            cpu_s=time.process_time() - self._cpu_begun_s,
        )

    def take_busy(self) -> list[tuple[float, float]]:
        """Intervals (start, end) of `time.monotonic()` computed in since the last call."""
        taken: list[tuple[float, float]] = []
        while self._busy:
            taken.append(self._busy.popleft())
        return taken

    async def close(self) -> None:
        """End the thread; what runs or waits is returned as aborted. May be called twice."""
        self._end_reason = self._end_reason or "the engine is closed"
        self._mail.put(self._stop)
        if self._is_threaded:
            await asyncio.to_thread(self._thread.join)
        elif not self._is_closing:
            self.take_mail()
        if self._updating is not None and not self._updating.done():
            self._updating.set_exception(EngineError(self._end_reason))

    def take_mail(self, *, is_blocking: bool = False) -> None:
        """Run what the loop posted; with `is_blocking` wait until there is something."""
        try:
            while not self._is_closing:
                self._mail.get(block=is_blocking)()
                is_blocking = False
        except Empty:
            return

    def step(self) -> None:
        """Apply an update whose moment has come, then compute one step."""
        self.apply_update()
        if not self._stepper.has_work:
            return
        start = time.monotonic()
        ended = self._stepper.step()
        self._note_busy(start, time.monotonic())
        if ended:
            self._to_loop(lambda: self._resolve(ended))

    def apply_update(self) -> None:
        """Install waiting weights, unless running requests must finish first (`drain`)."""
        update, stepper = self._update, self._stepper
        if update is None:
            return
        if update.mode is UpdateMode.DRAIN and stepper.num_running:
            stepper.is_admitting = False
            return
        start = time.perf_counter()
        stepper.load(update.staged, update.mode)
        stall_s = time.perf_counter() - start
        stepper.is_admitting = True
        self._update = None
        self._to_loop(lambda: _set(update.done, stall_s))

    def _run(self, threads: int) -> None:
        # Torch keeps the number of threads per calling thread.
        torch.set_num_threads(threads)
        try:
            while not self._is_closing:
                is_idle = self._update is None and not self._stepper.has_work
                self.take_mail(is_blocking=is_idle)
                self.step()
        except Exception as error:  # noqa: BLE001 the thread's entry point: callers get the error
            # Python forgets `error` when this block ends, before the loop runs the callback.
            failure = error
            self._to_loop(lambda: self._reject_all(failure))

    # On the thread, between steps.

    def _stop(self) -> None:
        self._is_closing = True
        # With nothing running it would be applied yet, after the end.
        self._update = None
        ended = self._stepper.abort_all()
        self._to_loop(lambda: self._resolve(ended))

    def _forget(self, request: Request) -> None:
        self._stepper.abort(request)

    def _begin_update(self, update: _Update) -> None:
        self._update = update

    def _withdraw_update(self, update: _Update) -> None:
        """The caller stopped waiting; does nothing to an update that was applied."""
        if self._update is update:
            self._update = None
            self._stepper.is_admitting = True

    def _note_busy(self, start: float, end: float) -> None:
        self._busy_s += end - start
        try:
            previous = self._busy.pop()
        except IndexError:
            self._busy.append((start, end))
            return
        if start - previous[1] < _MERGE_S:
            self._busy.append((previous[0], end))
        else:
            self._busy.extend((previous, (start, end)))

    def _to_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop ended without `close`: there is nobody left to compute for.
            self._is_closing = True

    # On the loop.

    def _resolve(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            future = self._requests.pop(one.request, None)
            if future is not None:
                _set(future, one.generation)

    def _reject_all(self, error: Exception) -> None:
        self._end_reason = f"the engine failed: {type(error).__name__}: {error}"
        futures: list[asyncio.Future[Any]] = list(self._requests.values())
        self._requests.clear()
        if self._updating is not None:
            futures.append(self._updating)
        for future in futures:
            if not future.done():
                failure = EngineError(self._end_reason)
                failure.__cause__ = error
                future.set_exception(failure)

    def _check_alive(self) -> None:
        if self._end_reason:
            raise EngineError(self._end_reason)


def _set(future: "asyncio.Future[T]", result: T) -> None:
    """Resolve a future whose caller may have been cancelled."""
    if not future.done():
        future.set_result(result)
