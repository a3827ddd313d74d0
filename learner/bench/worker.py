"""One side in a process of its own: `python -m learner.bench.worker JSON` prints what it measured."""

import os
import sys
import time
from pathlib import Path

import msgspec
import torch

from learner.bench.rollouts import Sizes, make_batch, rows_of
from learner.bench.shapes import SHAPES, peak_flops
from learner.bench.sides import SIDES, Work


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do."""

    side: str
    work: Work
    sizes: Sizes
    steps: int
    """After a first one that is not counted."""
    threads: int


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What it saw; times are of one step, each."""

    wall_s: list[float]
    cpu_s: list[float]
    """Of all threads."""
    memory: int
    """Bytes at the most, weights and optimizer included."""
    memory_at_rest: int
    """Between steps."""
    losses: list[float]
    row_tokens: int
    """Tokens of all rows of a step."""
    mfu: float | None
    """Share of the device's peak that the least a step needs is of what it could do in that time."""
    device: str


def measure(order: Order) -> Measured:
    """Set up, take the steps."""
    torch.set_num_threads(order.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = make_batch(order.sizes, vocab=SHAPES[order.work.model].vocab, seed=0)
    before = _resident()
    side = SIDES[order.side](order.work, device)
    losses = [side.step(batch)]
    _reset_peak(device)
    rest = _peak(device) - before if device.type == "cpu" else torch.cuda.memory_allocated()
    walls, cpus = [], []
    for _ in range(order.steps):
        wall, cpu = time.perf_counter(), time.process_time()
        losses.append(side.step(batch))
        if device.type == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    peak = peak_flops(device)
    on_cpu = device.type == "cpu"
    return Measured(
        wall_s=walls,
        cpu_s=cpus,
        memory=_peak(device) - (before if on_cpu else 0),
        memory_at_rest=rest,
        losses=losses,
        row_tokens=sum(len(row.token_ids) for row in rows_of(batch)),
        mfu=None if peak is None else side.flops(batch) / min(walls) / peak,
        device="cpu" if on_cpu else torch.cuda.get_device_name(device),
    )


def _resident() -> int:
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # From proc(5): the peak becomes what is held now.
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    # Interrupts end the parent, which ends this.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    found = measure(msgspec.json.decode(sys.argv[1], type=Order))
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
