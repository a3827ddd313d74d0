"""Seconds in which weights of one size get from a trainer to where an engine swaps them in."""

import importlib
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from configs.load import DEFAULT_RECIPE, load
from rollout import cluster
from rollout.ray_relay import here, start_relay
from rollout.staging import Memory, stage
from rollout.weights import Manifest

_MB = 1_000_000
# Of each tensor: as large as a matrix of a model of a few billion parameters.
_LARGEST_NUMBERS = 16_000_000
# One number in so many is another in the next version.
_CHANGED = 100


@dataclass(slots=True, kw_only=True, frozen=True)
class Transfer:
    """Medians, in seconds."""

    copy_s: float
    """The same bytes, once through memory."""
    write_s: float
    read_s: float
    """Reading, checking and copying beside the old ones."""
    carry_s: float
    """From file to file through Ray."""
    carry_delta_s: float
    snapshot_s: float

    @property
    def file_s(self) -> float:
        return self.write_s + self.read_s

    @property
    def relay_s(self) -> float:
        return self.write_s + self.carry_s + self.read_s

    @property
    def delta_s(self) -> float:
        return self.write_s + self.carry_delta_s + self.read_s


class Timer:
    """Medians of what is done again and again."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        yield
        self._seconds.setdefault(what, []).append(time.perf_counter() - begun_s)

    def median(self, what: str) -> float:
        # The first time memory is fresh, and code is not loaded.
        return statistics.median(self._seconds[what][1:])


async def measure(size_mb: int, folder: str) -> Transfer:
    """Everything but the engine; `folder` is where versions are written."""
    timer = Timer()
    repeats = 21 if size_mb < 20 else 6 if size_mb < 1000 else 3
    tensors = make_tensors(size_mb)
    time_copies(tensors, repeats, timer)
    with tempfile.TemporaryDirectory() as scratch:
        config = load(
            [
                DEFAULT_RECIPE,
                "weights.transport=relay",
                f"weights.dir={folder}",
                "weights.deadline_s=600",
            ]
        )
        run_dir = Path(scratch) / "run"
        cluster.join(config)
        try:
            for delta, what in ((False, "carry"), (True, "carry_delta")):
                section = msgspec.structs.replace(config.weights, delta=delta)
                settings = msgspec.structs.replace(config, weights=section)
                packed = msgspec.json.encode(settings), str(run_dir)
                node = here()
                places = {"learner": node, "actor-0": node}
                relay, lanes = await start_relay(settings, packed, places)
                assert relay is not None, "weights.transport=relay starts one"
                lane = lanes["actor-0"]

                async def carry(manifest: Manifest) -> Manifest:
                    return await lane.at(node, manifest)  # noqa: B023 - called within the loop

                try:
                    await _hand_over(tensors, repeats, timer, what, run_dir, folder, carry)
                finally:
                    await relay.close()
        finally:
            cluster.leave()
    return Transfer(
        copy_s=timer.median("copy"),
        write_s=timer.median("write"),
        read_s=timer.median("read"),
        carry_s=timer.median("carry"),
        carry_delta_s=timer.median("carry_delta"),
        snapshot_s=timer.median("snapshot"),
    )


def make_tensors(size_mb: int) -> dict[str, Tensor]:
    """Weights in float32."""
    left = size_mb * _MB // 4
    tensors: dict[str, Tensor] = {}
    while left:
        count = min(left, _LARGEST_NUMBERS)
        tensors[f"layer{len(tensors)}"] = torch.randn(count)
        left -= count
    return tensors


def time_copies(tensors: dict[str, Tensor], repeats: int, timer: Timer) -> None:
    """The bound: from one buffer in memory to another, both there already, by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    copies = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
    for _ in range(repeats + 1):
        with timer.timed("copy"):
            for name, tensor in tensors.items():
                copies[name].copy_(tensor)
    torch.set_num_threads(before)


async def _hand_over(
    tensors: dict[str, Tensor],
    repeats: int,
    timer: Timer,
    what: str,
    run_dir: Path,
    folder: str,
    carry: Callable[[Manifest], Awaitable[Manifest]],
) -> None:
    # As a run does: nothing of rollout/ imports the learner.
    publish: Any = importlib.import_module("learner.publish")
    overlap: Any = importlib.import_module("learner.overlap")
    publisher = publish.Publisher(
        directory=folder,
        fallback=run_dir / "weights",
        run_id=f"bench-{what}",
        log=run_dir / "version.json",
    )
    overlapping = overlap.Overlapping(publisher)
    memory = Memory()
    policy = nn.ParameterDict(
        {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    )
    try:
        for version in range(1, repeats + 2):
            with timer.timed("snapshot"):
                overlapping.publish(tensors, version=2 * version, step=version)
            overlapping.wait()
            copies = overlapping.copies
            with timer.timed("write"):
                manifest = publisher.publish(copies, version=2 * version + 1, step=version)
            with timer.timed(what):
                carried = await carry(manifest)
            with timer.timed("read"):
                staged = stage(policy, carried, memory)
            staged.memory.swap()  # as installing does
            for tensor in tensors.values():
                tensor[::_CHANGED] += 1
    finally:
        overlapping.close()
