"""The engine's contract: tokens in, tokens out, and weights that change while requests run.

`engine_local` implements it here with torch, `engine_vllm` with vLLM. Tests and actors know only this
protocol. Log-probs are those of the sampling distribution (same temperature).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rollout.types import EngineStats, Sampling, Span
from rollout.weights import Manifest

# Below this a positive temperature only overflows; greedy is 0.
_MIN_TEMPERATURE = 0.01


class UpdateMode(StrEnum):
    """What happens to running requests when weights change."""

    RECOMPUTE = "recompute"
    """Their caches are rebuilt under the new weights; exact, the default."""
    KEEP = "keep"
    """They go on with the old cache; tokens after the update are flagged `mixed_kv`."""
    DRAIN = "drain"
    """They finish first; new requests wait."""


class EngineStop(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """A stop token was sampled (it is the last token)."""
    LENGTH = "length"
    """`max_tokens`, or the context, was reached."""
    ABORTED = "aborted"
    """The caller cancelled, or the engine closed."""


@dataclass(slots=True, kw_only=True, frozen=True)
class Generation:
    """N sampled tokens; `spans` index into them (0..N), in order, without gaps."""

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    spans: list[Span]
    stop: EngineStop


@dataclass(slots=True, kw_only=True, frozen=True)
class UpdateReport:
    """How a weight update went on one engine. `stall_s` is the time without a forward pass."""

    version: int
    load_s: float
    stall_s: float


class EngineError(Exception):
    """The engine failed; the request or the update did not happen."""


class Engine(Protocol):
    """One inference replica. Cancelling `generate` frees its request."""

    @property
    def version(self) -> int: ...

    @property
    def num_parameters(self) -> int: ...

    @property
    def pids(self) -> list[int]:
        """Processes of its own that it computes in, as of now; none where it computes in this one."""
        ...

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, priority: int = 0
    ) -> Generation:
        """Sample a reply. Lower `priority` values go first. Raises EngineError."""
        ...

    async def update_weights(self, manifest: Manifest, mode: UpdateMode) -> UpdateReport:
        """Swap in the weights of `manifest`; all or nothing. Raises EngineError, WeightsError."""
        ...

    def stats(self) -> EngineStats: ...

    def take_busy(self) -> list[tuple[float, float]]:
        """Intervals (start, end) of `time.monotonic()` computed in since the last call."""
        ...

    async def close(self) -> None: ...


def checked_prompt(
    prompt_ids: Sequence[int], *, vocab_size: int, max_context_tokens: int
) -> npt.NDArray[np.int32]:
    """The prompt as an array [P]; raises EngineError for one that cannot be served."""
    try:
        prompt = np.asarray(prompt_ids)
    except ValueError as error:
        raise EngineError(f"prompt_ids is not a sequence of token ids: {error}") from error
    if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
        raise EngineError(
            f"prompt_ids must be one or more token ids, not {prompt.dtype} of shape {prompt.shape}"
        )
    if len(prompt) >= max_context_tokens:
        raise EngineError(
            f"a prompt of {len(prompt)} tokens leaves no room for a reply in "
            f"max_context_tokens={max_context_tokens}: shorten it or raise the latter"
        )
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= vocab_size:
        raise EngineError(
            f"prompt_ids has token {low if low < 0 else high}, and the model's vocabulary is "
            f"0..{vocab_size - 1}: encode with the model's own tokenizer"
        )
    return prompt.astype(np.int32)


def check_sampling(sampling: Sampling) -> None:
    """Raise EngineError for what no engine can sample."""
    if sampling.max_tokens < 1:
        raise EngineError(f"max_tokens={sampling.max_tokens}: ask for at least 1")
    temperature = sampling.temperature
    if temperature != 0 and not _MIN_TEMPERATURE <= temperature < math.inf:
        raise EngineError(
            f"temperature={temperature}: use 0 for greedy, or at least {_MIN_TEMPERATURE}"
        )
    if sampling.seed < 0:
        raise EngineError(f"seed={sampling.seed}: use 0 or more")


def check_context(max_context_tokens: int, positions: int) -> None:
    """Raise EngineError when a context is longer than the model's number of positions."""
    if max_context_tokens > positions:
        raise EngineError(
            f"max_context_tokens={max_context_tokens} is more than the model's {positions} "
            "positions: lower it"
        )
