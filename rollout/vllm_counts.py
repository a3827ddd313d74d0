"""What vLLM counts of its own work, kept where it can be read at any time."""
# pyright: reportMissingImports=false

import warnings
from dataclasses import dataclass, replace
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of vLLM's own imports
    from vllm.v1.metrics.loggers import PrometheusStatLogger


@dataclass(slots=True, kw_only=True)
class Counts:
    """What vLLM counts, as of its last step; the last four are totals since its start, in tokens."""

    running: int = 0
    waiting: int = 0
    kv_used_frac: float = 0.0
    prompt: int = 0
    prefix_hit: int = 0
    sampled: int = 0
    recomputed: int = 0

    def after(self, gone: "Counts") -> "Counts":
        """These, with the totals of engines that are `gone` in them."""
        return replace(
            self,
            prompt=self.prompt + gone.prompt,
            prefix_hit=self.prefix_hit + gone.prefix_hit,
            sampled=self.sampled + gone.sampled,
            recomputed=self.recomputed + gone.recomputed,
        )


def counting(counts: Counts) -> Any:
    """What vLLM makes a logger of statistics with, one that keeps `counts`.

    It stands in the place of the one for Prometheus, which vLLM adds where none is given: that takes a tenth
    of the front end's time and outlives its engine.
    """

    class Counting(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
            """Make none of its metrics."""

        def log_engine_initialized(self) -> None:
            pass

        def log(self) -> None:
            pass

        def record(
            self,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int = 0,
        ) -> None:
            if scheduler_stats is not None:
                counts.running = scheduler_stats.num_running_reqs
                counts.waiting = scheduler_stats.num_waiting_reqs
                counts.kv_used_frac = scheduler_stats.kv_cache_usage
                prefixes = scheduler_stats.prefix_cache_stats
                counts.prompt += prefixes.queries
                counts.prefix_hit += prefixes.hits
                counts.recomputed += prefixes.preempted_queries - prefixes.preempted_hits
            if iteration_stats is not None:
                counts.sampled += iteration_stats.num_generation_tokens

    return Counting
