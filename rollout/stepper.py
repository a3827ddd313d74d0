"""Continuous batching, one step at a time, without threads or event loops.

`Stepper` owns model, rows and requests. Between steps the caller may add, abort and load; a step
admits waiting requests, computes all new tokens of all running rows in one packed forward pass
(bounded by `_STEP_TOKENS`), samples a token for every row that is up to date, and returns what ended.
Log-probs are the model's own, of the head in float32.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import EngineSection
from rollout.attention import Plan, plan
from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.kv_rows import NO_VERSION, RowTable
from rollout.packing import head_weight, make_store
from rollout.sampler import Stream, draw
from rollout.staging import Staged
from rollout.types import Sampling, Span

# Tokens of one forward pass: enough to fill the cores, few enough that decoding rows are not held up.
_STEP_TOKENS = 2048

# Tokens of it that go to prefills however many rows decode, so that a prefill always advances.
_MIN_PREFILL_TOKENS = 256

# A request waits a step when a running prefill is about to give it this many tokens of its prompt.
_WORTH_WAITING_TOKENS = 16

# Decode rows are moved together when they fill less than half of their slice and these many more.
_SLACK_ROWS = 8


@dataclass(slots=True, kw_only=True, eq=False, frozen=True)
class Request:
    """What one `generate` asks for."""

    prompt: npt.NDArray[np.int32]
    sampling: Sampling
    priority: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class Ended:
    """A request and its reply."""

    request: Request
    generation: Generation


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the start, in tokens."""

    prompt: int = 0
    prefix_hit: int = 0
    sampled: int = 0
    recomputed: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    request: Request
    slot: int
    stream: Stream
    spans: list[Span]
    """The last one is open: its `end` is set when the reply ends."""
    logprobs: list[float] = field(default_factory=list)


class Stepper:
    """The embedded engine's core; every method belongs to one thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        section: EngineSection,
        max_context_tokens: int,
        version: int = 0,
    ) -> None:
        self.version = version
        self.counters = Counters()
        self.is_admitting = True
        self.store = make_store(
            model,
            num_rows=section.max_running + section.max_cached,
            max_tokens=max_context_tokens,
        )
        self.rows = RowTable(
            self.store,
            max_running=section.max_running,
            max_cached=section.max_cached,
            max_tokens=max_context_tokens,
        )
        self._max_running = section.max_running
        self._max_context_tokens = max_context_tokens
        self._decoder = model.get_decoder()
        self._model = model
        self._head_weight = head_weight(model)
        self._running: dict[Request, _Running] = {}
        self._waiting: dict[Request, None] = {}
        # (priority, arrival, request); a request that left `_waiting` is skipped when it comes up.
        self._queue: list[tuple[int, int, Request]] = []
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute something."""
        return bool(self._running) or (self.is_admitting and bool(self._waiting))

    def add(self, request: Request) -> None:
        self._waiting[request] = None
        heapq.heappush(self._queue, (request.priority, self._arrivals, request))
        self._arrivals += 1

    def abort(self, request: Request) -> Ended | None:
        """Forget a request and free its row; returns what it had, None when it had ended."""
        if request in self._waiting:
            del self._waiting[request]
            return Ended(request=request, generation=_generation([], [], [], EngineStop.ABORTED))
        if request not in self._running:
            return None
        return self._end(self._running[request], EngineStop.ABORTED)

    def abort_all(self) -> list[Ended]:
        ended = [self.abort(request) for request in [*self._running, *self._waiting]]
        return [one for one in ended if one is not None]

    def load(self, staged: Staged, mode: UpdateMode) -> None:
        """Install weights. Running requests go on by `mode`; `drain` needs that there are none."""
        assert mode is not UpdateMode.DRAIN or not self._running
        staged.install()
        self._head_weight = head_weight(self._model)
        self.version = staged.version
        self.rows.drop_cached()
        for running in self._running.values():
            self._carry_over(running, mode)

    def step(self) -> list[Ended]:
        """One forward pass over all running rows; returns the requests that ended with it.

        Raises EngineError when the weights give log-probs that are not finite.
        """
        self._admit()
        if not self._running:
            return []
        rows = self.rows
        running, slots, counts = self._schedule()
        work = plan(self.store, slots, rows.computed[slots], counts)
        hidden_TE = self._forward(work)
        rows.computed[slots] += counts
        order = work.order
        is_ready = (rows.computed[slots] == rows.lengths[slots])[order]
        ready = [running[index] for index in order[is_ready].tolist()]
        if not ready:
            return []
        return self._sample(ready, hidden_TE[torch.from_numpy(work.last[is_ready])])

    def _admit(self) -> None:
        """Give rows to waiting requests, lowest priority value first, then by arrival."""
        deferred: list[tuple[int, int, Request]] = []
        coming: set[bytes] = set()
        while (
            self.is_admitting
            and self._queue
            and len(self._running) + len(deferred) < self._max_running
        ):
            entry = heapq.heappop(self._queue)
            request = entry[2]
            if request not in self._waiting:
                continue
            prompt = request.prompt.tobytes()
            if prompt in coming:
                deferred.append(entry)
                continue
            prefix = self.rows.find(request.prompt, self.version)
            if prefix.coming - prefix.num_tokens >= _WORTH_WAITING_TOKENS:
                # Another member of its group is computing the shared prompt: it is prefilled once.
                coming.add(prompt)
                deferred.append(entry)
                continue
            del self._waiting[request]
            slot = self.rows.open(request.prompt, prefix, self.version)
            self._running[request] = _Running(
                request=request,
                slot=slot,
                stream=Stream(request.sampling.seed),
                spans=[Span(self.version, 0, 0)],
            )
            self.counters.prompt += len(request.prompt)
            self.counters.prefix_hit += prefix.num_tokens
        for entry in deferred:
            heapq.heappush(self._queue, entry)

    def _schedule(
        self,
    ) -> tuple[list[_Running], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows of this step [R], their slots [R] and numbers of tokens [R], within the budget."""
        running = list(self._running.values())
        slots = self._pack_together(running)
        new = self.rows.lengths[slots] - self.rows.computed[slots]
        prefill = np.where(new > 1, new, 0)
        room = max(_STEP_TOKENS - int(np.count_nonzero(new == 1)), _MIN_PREFILL_TOKENS)
        before = np.cumsum(prefill) - prefill
        counts = np.where(new > 1, np.clip(room - before, 0, new), new)
        chosen = np.flatnonzero(counts)
        return [running[index] for index in chosen.tolist()], slots[chosen], counts[chosen]

    def _pack_together(self, running: list[_Running]) -> npt.NDArray[np.int64]:
        """The slots of `running`, which are first moved together if they are far apart."""
        slots = np.array([one.slot for one in running])
        if int(slots.max() - slots.min()) < 2 * len(slots) + _SLACK_ROWS:
            return slots
        taken = set(slots.tolist())
        holes = (slot for slot in range(len(slots)) if slot not in taken)
        for one in running:
            if one.slot >= len(slots):
                hole = next(holes)
                self.rows.exchange(one.slot, hole)
                one.slot = hole
        return np.array([one.slot for one in running])

    @torch.inference_mode()
    def _forward(self, work: Plan) -> Tensor:
        """Hidden states [T, E] of the packed new tokens; keys and values land in the store."""
        tokens = self.rows.tokens[work.slots, work.positions].astype(np.int64)
        out = self._decoder(
            input_ids=torch.from_numpy(tokens)[None],
            position_ids=torch.from_numpy(work.positions)[None],
            use_cache=False,
            plan=work,
        )
        return out.last_hidden_state[0]

    @torch.inference_mode()
    def _sample(self, ready: Sequence[_Running], hidden_RE: Tensor) -> list[Ended]:
        """Append a token to each row of `ready`; returns the requests that ended with it."""
        rows = self.rows
        drawn = draw(
            F.linear(hidden_RE.float(), self._head_weight),
            np.array([one.request.sampling.temperature for one in ready], dtype=np.float32),
            np.array([one.stream.take() for one in ready], dtype=np.float32),
        )
        if not np.isfinite(drawn.logprobs).all():
            raise EngineError(f"the weights of version {self.version} give non-finite log-probs")
        slots = np.array([one.slot for one in ready])
        rows.tokens[slots, rows.lengths[slots]] = drawn.tokens
        rows.lengths[slots] += 1
        self.counters.sampled += len(ready)
        ended: list[Ended] = []
        lengths = rows.lengths[slots].tolist()
        tokens, logprobs = drawn.tokens.tolist(), drawn.logprobs.tolist()
        for one, token, logprob, length in zip(ready, tokens, logprobs, lengths, strict=True):
            one.logprobs.append(logprob)
            sampling = one.request.sampling
            if token in sampling.stop_token_ids:
                ended.append(self._end(one, EngineStop.STOP))
            elif len(one.logprobs) == sampling.max_tokens or length == self._max_context_tokens:
                ended.append(self._end(one, EngineStop.LENGTH))
        return ended

    def _carry_over(self, running: _Running, mode: UpdateMode) -> None:
        """Prepare a running row for the weights that were just installed."""
        rows, slot = self.rows, running.slot
        is_mixed = mode is UpdateMode.KEEP and bool(rows.computed[slot])
        if not is_mixed:
            self.counters.recomputed += int(rows.computed[slot])
            rows.computed[slot] = 0
        rows.kv_version[slot] = NO_VERSION if is_mixed else self.version
        start = len(running.logprobs)
        _close_span(running.spans, start)
        running.spans.append(Span(self.version, start, start, is_mixed))

    def _end(self, running: _Running, stop: EngineStop) -> Ended:
        """Take a running request out; its row is cached unless it was aborted."""
        del self._running[running.request]
        slot, first = running.slot, len(running.request.prompt)
        count = len(running.logprobs)
        tokens = self.rows.tokens[slot, first : first + count].copy()
        _close_span(running.spans, count)
        self.rows.end(slot, is_kept=stop is not EngineStop.ABORTED)
        generation = _generation(tokens, running.logprobs, running.spans, stop)
        return Ended(request=running.request, generation=generation)


def _close_span(spans: list[Span], end: int) -> None:
    """Set the end of the last span; a span without tokens disappears."""
    last = spans.pop()
    if last.start < end:
        spans.append(Span(last.version, last.start, end, last.mixed_kv))


def _generation(
    tokens: npt.ArrayLike, logprobs: list[float], spans: list[Span], stop: EngineStop
) -> Generation:
    return Generation(
        token_ids=np.asarray(tokens, dtype=np.int32),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        spans=spans,
        stop=stop,
    )
