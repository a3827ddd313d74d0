"""What vLLM's words mean here, whether it is asked in this process or over HTTP. Imports no vLLM."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from rollout.engine import EngineError, EngineStop, Generation, UpdateMode
from rollout.types import Span

_STOPS = {
    "stop": EngineStop.STOP,
    "length": EngineStop.LENGTH,
    "abort": EngineStop.ABORTED,
}

PAUSES = {
    UpdateMode.RECOMPUTE: ("keep", True),
    UpdateMode.KEEP: ("keep", False),
    UpdateMode.DRAIN: ("wait", True),
}
"""How running requests go through an update: vLLM's way to pause, and whether caches are cleared."""


def spans_of(
    versions: Iterable[tuple[int, int, int]], *, asked_at: int, kept: Collection[int]
) -> list[Span]:
    """The runs of tokens (version, start, end) of a request that was handed over at version `asked_at`.

    `kept`: versions whose update left running requests their old caches. A request that was still waiting
    then counts as mixed, too: it may have found its prompt in a cache of older weights.
    """
    return [
        Span(one, start, end, mixed_kv=one > asked_at and one in kept)
        for one, start, end in versions
    ]


def generation(
    token_ids: Sequence[int],
    logprobs: Sequence[float],
    spans: list[Span],
    finish_reason: str,
    *,
    who: str,
) -> Generation:
    """A reply, of N tokens; raises EngineError, which begins with `who`, for one that makes no sense."""
    if finish_reason not in _STOPS:
        raise EngineError(f"{who} ended a reply with {finish_reason!r}")
    count = len(token_ids)
    ends = [0, *(span.end for span in spans)]
    if [span.start for span in spans] != ends[:-1] or ends[-1] != count:
        said = [(span.version, span.start, span.end) for span in spans]
        raise EngineError(f"{who} says that weights sampled {said} of {count} tokens")
    return Generation(
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=np.array(logprobs, dtype=np.float32),
        spans=spans,
        stop=_STOPS[finish_reason],
    )
