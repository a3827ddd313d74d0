"""`python launch.py bench learner`: an optimizer step of the learner against one on padded batches.

Both train on the same rollouts: groups that share a prompt, several turns, ragged lengths. The peer
pads prompts and completions and builds the logits of whole micro-batches, as TRL does with
transformers. Sides take turns, each time in a fresh process; a ratio is ours over the peer's, from
medians. Tokens are those of all rows, however often a side computes them. On a CPU, memory is the
most the process held beyond what it held before there was a model.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from configs.load import ConfigError
from learner.bench.rollouts import Sizes
from learner.bench.shapes import SHAPES
from learner.bench.sides import SIDES, Work
from learner.bench.worker import Measured, Order

_ROOT = Path(__file__).parents[2]
_DTYPES = ("float32", "bfloat16")
# Largest difference of the sides' first losses that rounding explains.
_SAME_LOSS = {"float32": 1e-4, "bfloat16": 2e-2}


class BenchError(RuntimeError):
    """A side did not end, or the sides did not compute the same."""


def main(arguments: list[str]) -> int:
    """Print a table; with --json also one JSON object on the last line."""
    options = _parser().parse_args(arguments)
    if options.rounds < 1 or options.steps < 1 or options.members < 2:
        raise ConfigError("--rounds and --steps take 1 or more, --members 2 or more")
    if not torch.cuda.is_available() and not Path("/proc/self/clear_refs").exists():
        raise ConfigError("bench learner reads /proc, which this system does not have")
    try:
        found = _rounds(options)
    except BenchError as error:
        sys.stderr.write(f"failed: {error}\n")
        return 1
    result = summary(found)
    result |= {"model": options.model, "dtype": options.dtype, "options": vars(options)}
    _print(result)
    if options.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _rounds(options: argparse.Namespace) -> dict[str, list[Measured]]:
    """What each side came to, in turns. Raises BenchError."""
    found: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            sys.stderr.write(f"round {number + 1} of {options.rounds}: {side}\n")
            found[side].append(_measured(_order(options, side)))
    _check(found, options.dtype)
    return found


def summary(found: dict[str, list[Measured]]) -> dict[str, object]:
    """Medians of each side, and ours over the peer's."""
    sides = {}
    for side, rounds in found.items():
        tokens = rounds[0].row_tokens
        mfus = [one.mfu for one in rounds if one.mfu is not None]
        sides[side] = {
            "tokens_per_s": tokens / statistics.median(s for one in rounds for s in one.wall_s),
            "tokens_per_cpu_s": tokens / statistics.median(s for one in rounds for s in one.cpu_s),
            "peak_memory": statistics.median(one.memory for one in rounds),
            "memory_at_rest": statistics.median(one.memory_at_rest for one in rounds),
            "mfu": max(mfus) if mfus else None,
        }
    ours, peer = sides["ours"], sides["padded"]
    return {
        "benchmark": "learner",
        "device": found["ours"][0].device,
        "row_tokens": found["ours"][0].row_tokens,
        "sides": sides,
        "ratios": {
            name: ours[name] / peer[name]
            for name in ("tokens_per_s", "tokens_per_cpu_s", "peak_memory")
        },
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launch.py bench learner", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print a JSON object on the last line")
    parser.add_argument("--model", choices=SHAPES, default="small", help="shape, random weights")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--recompute", action="store_true", help="both checkpoint activations")
    for name, default, text in (
        ("rounds", 3, "fresh processes of each side"),
        ("steps", 2, "counted steps of each process"),
        ("threads", 1, "torch threads on a CPU"),
        ("micro-batch-tokens", 4096, "most tokens at once; the peer's with padding"),
        ("groups", 4, "groups in a batch"),
        ("members", 8, "rollouts of a group"),
        ("prompt", 256, "tokens of a prompt, about"),
        ("turns", 4, "most turns of a rollout"),
        ("reply", 48, "tokens of a reply, the median"),
        ("observation", 32, "tokens of an observation, about"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    return parser


def _order(options: argparse.Namespace, side: str) -> Order:
    return Order(
        side=side,
        work=Work(
            model=options.model,
            dtype=options.dtype,
            micro_batch_tokens=options.micro_batch_tokens,
            recompute=options.recompute,
        ),
        sizes=Sizes(
            groups=options.groups,
            members=options.members,
            prompt=options.prompt,
            turns=options.turns,
            reply=options.reply,
            observation=options.observation,
        ),
        steps=options.steps,
        threads=options.threads,
    )


def _measured(order: Order) -> Measured:
    """Run a worker; raises ConfigError with the end of what it said when it fails."""
    text = msgspec.json.encode(order).decode()
    run = subprocess.run(
        [sys.executable, "-m", "learner.bench.worker", text],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise ConfigError(f"the side {order.side!r} failed:\n{run.stderr[-2000:]}")
    return msgspec.json.decode(run.stdout.splitlines()[-1], type=Measured)


def _check(found: dict[str, list[Measured]], dtype: str) -> None:
    """Raise BenchError when the sides took different steps."""
    ours, peer = (found[side][0].losses[0] for side in SIDES)
    if not math.isclose(ours, peer, rel_tol=_SAME_LOSS[dtype], abs_tol=_SAME_LOSS[dtype]):
        raise BenchError(f"the sides computed different losses: {ours} and {peer}")


def _print(result: dict) -> None:
    shown = Table(box=None, pad_edge=False)
    for head in ("side", "tokens/s", "tokens/CPU-s", "peak MiB", "at rest MiB", "MFU"):
        shown.add_column(head, justify="left" if head == "side" else "right")
    for side, numbers in result["sides"].items():
        shown.add_row(
            side,
            f"{numbers['tokens_per_s']:,.0f}",
            f"{numbers['tokens_per_cpu_s']:,.0f}",
            f"{numbers['peak_memory'] / 2**20:,.0f}",
            f"{numbers['memory_at_rest'] / 2**20:,.0f}",
            "-" if numbers["mfu"] is None else f"{numbers['mfu']:.1%}",
        )
    ratios = result["ratios"]
    shown.add_row(
        "ours / padded",
        f"{ratios['tokens_per_s']:.2f}",
        f"{ratios['tokens_per_cpu_s']:.2f}",
        f"{ratios['peak_memory']:.2f}",
    )
    console = Console(file=sys.stdout, width=100)
    console.print(
        f"{result['model']} in {result['dtype']} on {result['device']}: a step on "
        f"{result['row_tokens']:,} tokens"
    )
    console.print(shown)
