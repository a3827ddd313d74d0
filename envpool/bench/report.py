"""What the benchmark of the pool found: as a table, and as one JSON object."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from envpool.bench.recovery import Recovery
from envpool.bench.system import Candidate, Measured

# What ours, sandboxed and a process per session, is compared with: the key of the ratio, what is
# measured of ours, and of which peers the best counts.
COMPARED = (
    ("bare_socketpair", "sandbox", ("bare_socketpair",)),
    ("async_vector_env", "sandbox", ("async_vector_env",)),
    ("async_vector_env_slow", "sandbox_slow", ("async_vector_env_slow",)),
    ("ray_actors", "sandbox", ("ray_actors",)),
    ("serialise_fork_step", "sandbox", ("serialise_fork_step",)),
    ("process_pool", "sandbox", ("pebble", "multiprocessing_pool")),
)
# Further comparisons, of the same kind.
ALSO_COMPARED = (
    ("async_vector_env_long_tail", "sandbox_long_tail", ("async_vector_env_long_tail",)),
    ("sync_vector_env", "sandbox", ("sync_vector_env",)),
    ("least_serialise_fork_step", "sandbox", ("least_serialise_fork_step",)),
    ("no_sandbox", "sandbox", ("no_sandbox",)),
    # The other way round: what sharing gives.
    ("shared over no_sandbox", "shared", ("no_sandbox",)),
)

Pair = tuple[str, str, tuple[str, ...]]
Ratios = dict[str, float | None]


def medians(found: Sequence[Measured]) -> Measured:
    """The median of each number."""
    return Measured(
        **{one.name: median(getattr(each, one.name) for each in found) for one in fields(Measured)}
    )


def ratios(compared: Sequence[Candidate], pairs: Sequence[Pair], of: str) -> Ratios:
    """Ours over the best of its peers in the number `of`: the median over rounds.

    None where no peer could be measured.
    """
    found = {one.name: one.found for one in compared}
    result: Ratios = {}
    for key, name, peers in pairs:
        measured = [found[peer] for peer in peers if found.get(peer)]
        rounds = [
            getattr(own, of) / max(getattr(other, of) for other in others)
            for own, *others in zip(found.get(name, []), *measured, strict=False)
            if others
        ]
        result[key] = median(rounds) if rounds else None
    return result


def table(candidates: Sequence[Candidate]) -> Table:
    """A row for each system that was measured."""
    found = Table(box=None)
    for heading in (
        "",
        "sessions",
        "steps/s",
        "per CPU s",
        "p50 ms",
        "p99 ms",
        "MiB",
        "start s",
    ):
        found.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for one in candidates:
        if one.found:
            row = medians(one.found)
            found.add_row(
                one.name,
                f"{one.size:,}",
                f"{row.steps_per_s:,.0f}",
                f"{row.steps_per_cpu_s:,.0f}",
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.private_mib:.1f}",
                f"{row.start_s:.2f}",
            )
    return found


def ratio_table(by_wall: Ratios, by_cpu: Ratios) -> Table:
    """What ours is to each peer."""
    found = Table(box=None)
    for heading in ("sandbox, a process per session, over", "steps/s", "steps per CPU s"):
        found.add_column(heading, justify="right" if "steps" in heading else "left")
    for key, value in by_wall.items():
        found.add_row(key, *("-" if v is None else f"{v:.2f} x" for v in (value, by_cpu[key])))
    return found


def steps(
    console: Console, compared: Sequence[Candidate], alone: Sequence[Candidate], size: int
) -> dict[str, Any]:
    """Print what steps cost; returns it as a JSON object."""
    every = [*compared, *alone]
    by_wall = ratios(compared, COMPARED, "steps_per_s")
    by_cpu = ratios(compared, COMPARED, "steps_per_cpu_s")
    others = ratios(compared, ALSO_COMPARED, "steps_per_s")
    others_by_cpu = ratios(compared, ALSO_COMPARED, "steps_per_cpu_s")
    console.print(table(every))
    console.print(f"{size} sessions, medians over rounds:")
    console.print(ratio_table(by_wall | others, by_cpu | others_by_cpu))
    for one in compared:
        if one.skipped:
            console.print(f"{one.name} was not measured: {one.skipped}")
    return {
        "benchmark": "envpool",
        "sessions": size,
        "ratios": by_wall,
        "ratios_per_cpu_s": by_cpu,
        "other_ratios": others,
        "systems": [
            {"name": one.name, "size": one.size, "rounds": len(one.found), "skipped": one.skipped}
            | (asdict(medians(one.found)) if one.found else {})
            for one in every
        ],
    }


def moments(console: Console, recovered: Recovery, new_pool_s: list[float]) -> dict[str, Any]:
    """Print what is no matter of steps; returns it as a JSON object."""
    console.print(
        f"{recovered.killed} of {recovered.sessions} sessions killed at once: the last answered its "
        f"next step after {recovered.last_answer_s:.2f} s; {recovered.wrong_transcripts} of "
        "all transcripts went on wrong"
    )
    half_s, all_s = median(new_pool_s), max(new_pool_s)
    console.print(
        f"source text of a new pool to its first tool result: {1e3 * half_s:.0f} ms (median of "
        f"{len(new_pool_s)}; the longest {1e3 * all_s:.0f} ms)"
    )
    return {"recovery": asdict(recovered), "new_pool_s": {"p50": half_s, "max": all_s}}
