"""The engine's contract: tokens in, tokens out, and weights that change while requests run.

`engine_local` implements it here with torch; another implementation drives vLLM. Tests and actors
know only this protocol. Log-probs are those of the sampling distribution (same temperature).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rollout.types import EngineStats, Sampling, Span
from rollout.weights import Manifest


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
