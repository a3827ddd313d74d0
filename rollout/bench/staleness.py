"""`python launch.py bench staleness`: which correction of off-policy data stands which lag.

Each cell of the grid trains the recipe's policy at one exact lag (`rollout.bench.exact_lag`), with one
correction, learning rate and seed, and evaluates it before and after. The whole grid takes hours; each
cell is written to a file as it ends, and a second call with the same --out goes on. `--quick` takes
minutes and shows the same on a few cells of one seed.

A training has collapsed when it ends with less than half of the best that it had reached.
"""

import argparse
import asyncio
import itertools
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from configs.load import ConfigError, load
from rollout.bench.exact_lag import ExactLag, Outcome
from rollout.leash import Leash
from rollout.run import Checked, check

RECIPE = "local.toml"
# Of an update. A recipe's longer episodes are nearly all failures, and a third of a cell's time.
SIZES = ("rollout.groups_per_step=8", "rollout.group_size=8", "rollout.max_turns=12")
EVALUATED = "fresh"

VARIANTS: dict[str, tuple[str, ...]] = {
    "clip": ("correction=clip",),
    "clip, sequence (GSPO)": (
        "correction=clip",
        "level=sequence",
        "clip_low=3e-4",
        "clip_high=4e-4",
    ),
    "tis": ("correction=tis",),
    "icepop": ("correction=icepop",),
    "dppo": ("correction=dppo",),
    "cispo": ("correction=cispo",),
    "decoupled": ("correction=decoupled",),
    "m2po": ("correction=m2po",),
    "vespo": ("correction=vespo", "level=sequence"),
    "none": ("correction=none",),
}
LAGS = (0, 2, 4, 8, 16)
RATES = (2e-4, 6e-4)
SEEDS = (0, 1, 2)
UPDATES = 50

QUICK_VARIANTS = ("clip", "tis", "none")
QUICK_LAGS = (0, 8)
QUICK_UPDATES = 20


class Cell(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One training of the grid."""

    variant: str
    lag: int
    lr: float
    seed: int
    updates: int
    settings: tuple[str, ...] = ()
    """Overrides of the recipe besides."""

    @property
    def overrides(self) -> list[str]:
        return [
            *(f"learner.loss.{setting}" for setting in VARIANTS[self.variant]),
            f"rollout.max_lag={self.lag}",
            f"learner.lr={self.lr:g}",
            f"run.seed={self.seed}",
        ]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the results' file."""

    cell: Cell
    outcome: Outcome


def main(arguments: list[str]) -> int:
    """Train what is missing of the grid, then print the table; with --json an object on the last line."""
    options = _parser().parse_args(arguments)
    cells = _cells(options)
    _check(cells[0])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.out or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "cells.jsonl"
        known = {done.cell: done for done in read(file)}
        missing = [cell for cell in cells if cell not in known]
        if len(missing) < len(cells):
            _say(f"{len(cells) - len(missing)} of {len(cells)} cells are in {file}")
        for done in _train(missing, jobs=options.jobs):
            known[done.cell] = done
            with file.open("ab") as lines:
                lines.write(msgspec.json.encode(done) + b"\n")
        chosen = [known[cell] for cell in cells]
        table = markdown(chosen)
        _print(chosen)
        if options.out:
            (folder / "table.md").write_text(table)
            _plot(chosen, folder / "staleness.svg")
    if options.json:
        sys.stdout.write(json.dumps(summary(chosen)) + "\n")
    return 0


def read(file: Path) -> list[Done]:
    """The cells of a results' file; a last line that was cut off is removed."""
    if not file.exists():
        return []
    whole, newline, rest = file.read_bytes().rpartition(b"\n")
    if rest:
        file.write_bytes(whole + newline)
    return [msgspec.json.decode(line, type=Done) for line in whole.splitlines()]


def summary(cells: Iterable[Done]) -> dict[str, object]:
    """Flat numbers for a machine."""
    found = {
        f"{variant} lag={lag} lr={lr:g}": {
            "after": [one.outcome.after for one in of],
            "collapsed": sum(one.outcome.is_collapsed for one in of),
        }
        for (variant, lag, lr), of in _grouped(cells).items()
    }
    return {"benchmark": "staleness", "cells": found}


def markdown(cells: Sequence[Done]) -> str:
    """A table for each learning rate: mean success after training, and how many of the seeds collapsed."""
    lines: list[str] = []
    for lr, header, rows in _tables(cells):
        lines += [f"Learning rate {lr:g}", "", "| " + " | ".join(header) + " |"]
        lines += ["|---" * len(header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [""]
    return "\n".join(lines)


def _tables(cells: Sequence[Done]) -> list[tuple[float, list[str], list[list[str]]]]:
    """Learning rate, header and rows of each table."""
    grouped = _grouped(cells)
    tables = []
    for lr in sorted({lr for _, _, lr in grouped}):
        lags = sorted({lag for _, lag, rate in grouped if rate == lr})
        variants = dict.fromkeys(variant for variant, _, rate in grouped if rate == lr)
        rows = [
            [variant, *(_text(grouped.get((variant, lag, lr), [])) for lag in lags)]
            for variant in variants
        ]
        tables.append((lr, ["correction", *(f"lag {lag}" for lag in lags)], rows))
    return tables


def _text(of: Sequence[Done]) -> str:
    """`.62 ± .03, 1 of 3 collapsed`: mean and standard error over seeds."""
    if not of:
        return ""
    values = [one.outcome.after for one in of]
    text = f"{statistics.fmean(values):.2f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"
    if collapsed := sum(one.outcome.is_collapsed for one in of):
        text += f", {collapsed} of {len(of)} collapsed"
    return text


def _grouped(cells: Iterable[Done]) -> dict[tuple[str, int, float], list[Done]]:
    """By all but the seed."""
    grouped: dict[tuple[str, int, float], list[Done]] = defaultdict(list)
    for done in cells:
        grouped[done.cell.variant, done.cell.lag, done.cell.lr].append(done)
    return grouped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.py bench staleness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a few cells of one seed, in minutes")
    parser.add_argument("--out", metavar="DIR", help="keep cells, table and plot; go on from there")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, a core each (2)")
    parser.add_argument("--variants", help=f"of {'; '.join(VARIANTS)}: separated by ;")
    parser.add_argument("--lags", help=f"({_joined(LAGS)})")
    parser.add_argument("--lrs", help=f"({_joined(RATES)})")
    parser.add_argument("--seeds", help=f"({_joined(SEEDS)})")
    parser.add_argument("--updates", type=int, help=f"({UPDATES}; --quick: {QUICK_UPDATES})")
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    parser.add_argument("settings", nargs="*", help="recipes and overrides, as of a run")
    return parser


def _cells(options: argparse.Namespace) -> list[Cell]:
    """The grid that is asked for, a seed after the other; raises ConfigError."""
    is_quick = options.quick
    variants = list(QUICK_VARIANTS if is_quick else VARIANTS)
    if options.variants:
        variants = [name.strip() for name in options.variants.split(";")]
        if unknown := [name for name in variants if name not in VARIANTS]:
            raise ConfigError(f"--variants: {unknown[0]!r} is none of: {'; '.join(VARIANTS)}")
    lags = _numbers("--lags", options.lags, QUICK_LAGS if is_quick else LAGS)
    rates = _numbers("--lrs", options.lrs, RATES[-1:] if is_quick else RATES)
    seeds = _numbers("--seeds", options.seeds, SEEDS[:1] if is_quick else SEEDS)
    updates = options.updates or (QUICK_UPDATES if is_quick else UPDATES)
    if updates < 1 or options.jobs < 1:
        raise ConfigError("--updates and --jobs: 1 or more")
    grid = itertools.product(seeds, lags, rates, variants)
    return [
        Cell(
            variant=variant,
            lag=int(lag),
            lr=float(lr),
            seed=int(seed),
            updates=updates,
            settings=tuple(options.settings),
        )
        for seed, lag, lr, variant in grid
    ]


def _numbers(name: str, given: str | None, default: Sequence[float]) -> Sequence[float]:
    if given is None:
        return default
    try:
        found = [float(word) for word in given.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise ConfigError(f"{name} {given!r}: numbers of 0 or more, separated by commas")
    return found


def _check(cell: Cell) -> Checked:
    """The run that a cell trains with; raises ConfigError."""
    checked = check(load([RECIPE, *SIZES, *cell.settings, *cell.overrides, "logging.wandb=off"]))
    if EVALUATED not in checked.evaluation_sets:
        raise ConfigError(f"eval.sets has no {EVALUATED!r}, on which a policy is evaluated")
    return checked


def _train(cells: Sequence[Cell], *, jobs: int) -> Iterable[Done]:
    """Each cell as it ends, in whatever order."""
    begun = time.monotonic()
    # A process for each: torch keeps what it allocates.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, context, initializer=_begin, initargs=(Leash(),), max_tasks_per_child=1
    ) as pool:
        futures = [pool.submit(train_cell, cell) for cell in cells]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                done = future.result()
                left_s = (time.monotonic() - begun) / count * (len(cells) - count)
                cell, outcome = done.cell, done.outcome
                _say(
                    f"{count} of {len(cells)}: {cell.variant}, lag {cell.lag}, lr {cell.lr:g}, seed "
                    f"{cell.seed}: {outcome.before:.2f} -> {outcome.after:.2f} in "
                    f"{outcome.wall_s:.0f} s; about {left_s / 60:.0f} min left"
                )
                yield done
        finally:
            for future in futures:
                future.cancel()


def _begin(_: Leash) -> None:
    """Whoever holds a leash ends with who made it, also when that one is killed."""


def train_cell(cell: Cell) -> Done:
    """Train one cell in this process."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    checked = _check(cell)

    async def train(run_dir: Path) -> Outcome:
        training = await ExactLag.start(checked, run_dir)
        try:
            return await training.train(cell.updates, checked.evaluation_sets[EVALUATED])
        finally:
            await training.close()

    with tempfile.TemporaryDirectory() as scratch:
        return Done(cell=cell, outcome=asyncio.run(train(Path(scratch))))


def _print(cells: Sequence[Done]) -> None:
    console = Console()
    for lr, header, rows in _tables(cells):
        table = Table(title=f"success after training, learning rate {lr:g}")
        for column in header:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        console.print(table)


def _plot(cells: Sequence[Done], path: Path) -> None:
    """Success by lag, a line for each correction and a panel for each learning rate."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _say("the plot is left out: pip install matplotlib")
        return
    grouped = _grouped(cells)
    rates = sorted({lr for _, _, lr in grouped})
    lags = sorted({lag for _, lag, _ in grouped})
    figure = Figure(figsize=(5 * len(rates), 4), layout="constrained")
    for number, lr in enumerate(rates, 1):
        axes = figure.add_subplot(1, len(rates), number)
        for variant in dict.fromkeys(variant for variant, _, _ in grouped):
            found = {
                lag: grouped[variant, lag, lr] for lag in lags if (variant, lag, lr) in grouped
            }
            means = [statistics.fmean(one.outcome.after for one in of) for of in found.values()]
            axes.plot(range(len(found)), means, marker="o", label=variant)
        axes.set(title=f"learning rate {lr:g}", xlabel="lag, in updates", ylim=(0, 1))
        axes.set_xticks(range(len(lags)), [str(lag) for lag in lags])
        if number == 1:
            axes.set_ylabel("success of sampled episodes after training")
            axes.legend(fontsize="small")
    figure.savefig(path)


def _joined(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
