"""`python launch.py bench sync`: what handing weights over costs, against copying as many bytes in memory.

For each size, in seconds over the seconds of one copy between two buffers in the same process:

- file: a version is written, checked, read and copied beside the old weights, as on one node;
- relay: the same with a way through Ray between, as to another node (here both ends are on this one);
- delta: the same, where one number in a hundred has changed since the version before;
- snapshot: for how long publishing keeps the learner from the next step;
- stall: for how long the embedded engine generates nothing while a version comes under running requests;
  and the same with their prompts computed anew under the new weights, as is the default.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from configs.load import ConfigError
from rollout.bench import sync_stall, sync_transfer

SIZES_MB = (2, 200, 2000)
# Copies of the weights that there must be room for: in memory all told, and in files at once.
_MEMORY_COPIES, _FILE_COPIES = 10, 6


@dataclass(slots=True, kw_only=True, frozen=True)
class Cost:
    """What one size came to; None where it was not measured."""

    transfer: sync_transfer.Transfer
    stall: sync_stall.Stall | None


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="launch.py bench sync", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    sizes = ",".join(map(str, SIZES_MB))
    parser.add_argument("--sizes", default=sizes, help=f"of the weights, in MB ({sizes})")
    parser.add_argument("--dir", default="/dev/shm", help="where versions are written (/dev/shm)")
    parser.add_argument("--no-stall", action="store_true", help="leave the engine out")
    options = parser.parse_args(arguments)
    try:
        sizes_mb = [int(word) for word in options.sizes.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--sizes {options.sizes}: name megabytes, as in --sizes 2,200"
        ) from error
    if min(sizes_mb) < 1:
        raise ConfigError(f"--sizes {options.sizes}: from 1 MB on")
    # Ray reports usage, and warns about a future default, unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    costs: dict[int, Cost] = {}
    skipped: dict[int, str] = {}
    for size_mb in sizes_mb:
        if reason := _lacking(size_mb, Path(options.dir)):
            skipped[size_mb] = reason
            sys.stderr.write(f"{size_mb} MB: left out, {reason}\n")
            continue
        sys.stderr.write(f"{size_mb} MB\n")
        transfer = asyncio.run(sync_transfer.measure(size_mb, options.dir))
        stall = None if options.no_stall else asyncio.run(sync_stall.measure(size_mb))
        costs[size_mb] = Cost(transfer=transfer, stall=stall)
        # At once: the largest takes minutes, and may be interrupted.
        _print({size_mb: costs[size_mb]}, with_names=len(costs) == 1)
    if options.json:
        sys.stdout.write(json.dumps(summary(costs, skipped)) + "\n")
    return 0


def _lacking(size_mb: int, folder: Path) -> str:
    """What there is too little of for this size; empty where there is enough."""
    free_mb = psutil.virtual_memory().available // 1_000_000
    if free_mb < _MEMORY_COPIES * size_mb:
        return f"which takes {_MEMORY_COPIES * size_mb} MB of memory and {free_mb} are free"
    room_mb = shutil.disk_usage(folder).free // 1_000_000
    if room_mb < _FILE_COPIES * size_mb:
        return f"which takes {_FILE_COPIES * size_mb} MB in {folder} and {room_mb} are free"
    return ""


def summary(costs: dict[int, Cost], skipped: dict[int, str]) -> dict[str, Any]:
    """For a machine: ratios by size, and the seconds behind them."""
    ratios: dict[str, dict[str, float]] = {}
    for size_mb, cost in costs.items():
        for name, ratio in _ratios(cost).items():
            ratios.setdefault(f"{name}_over_copy", {})[f"{size_mb}MB"] = ratio
    return {
        "benchmark": "sync",
        "ratios": ratios,
        "seconds": {f"{size_mb}MB": asdict(cost) for size_mb, cost in costs.items()},
        "skipped": {f"{size_mb}MB": reason for size_mb, reason in skipped.items()},
    }


def _ratios(cost: Cost) -> dict[str, float]:
    one = cost.transfer
    ratios = {
        "transfer": one.file_s / one.copy_s,
        "relay": one.relay_s / one.copy_s,
        "delta": one.delta_s / one.copy_s,
        "snapshot": one.snapshot_s / one.copy_s,
    }
    if cost.stall is not None:
        ratios["stall"] = cost.stall.keep_s / cost.stall.copy_s
        ratios["stall_recompute"] = cost.stall.recompute_s / cost.stall.copy_s
    return ratios


def _print(costs: dict[int, Cost], *, with_names: bool) -> None:
    columns = ("transfer", "relay", "delta", "snapshot", "stall", "stall_recompute")
    names = f"{'':>8} {'copy':>9} " + " ".join(f"{name:>15}" for name in columns)
    lines = [names] if with_names else []
    for size_mb, cost in costs.items():
        ratios = _ratios(cost)
        cells = [f"{ratios[name]:>13.2f} x" if name in ratios else f"{'-':>15}" for name in columns]
        lines.append(f"{size_mb:>5} MB {1000 * cost.transfer.copy_s:>6.1f} ms " + " ".join(cells))
        one = cost.transfer
        lines.append(
            f"{'':>8} file: write {one.write_s:.3f} s, read {one.read_s:.3f} s; carried in "
            f"{one.carry_s:.3f} s, as changes {one.carry_delta_s:.3f} s"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
