"""The learner's ranks: how they meet, what they tell each other, who computes what.

Every rank has the whole batch and makes the same decisions from it; only the passes through the
model are dealt out. Whatever is decided by computed numbers is decided by those of all ranks.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rollout.types import RankPlace

T = TypeVar("T")


class RanksError(RuntimeError):
    """The ranks of the learner did not meet."""


class Ranks:
    """One rank among all of them; with `size` 1 nothing is sent, and nothing can fail."""

    def __init__(self, rank: int = 0, size: int = 1, mesh: DeviceMesh | None = None) -> None:
        self.rank = rank
        self.size = size
        self.mesh = mesh

    @classmethod
    def meet(cls, place: RankPlace, *, device: str, deadline_s: float) -> "Ranks":
        """Wait for the others; `device` is `cpu` (gloo) or `cuda` (NCCL).

        Whoever is not there after `deadline_s`, now or when something is to be added up, is given up:
        that raises RanksError here, and RuntimeError later. Only one such group in a process.
        """
        timeout = timedelta(seconds=deadline_s)
        try:
            store = TCPStore(
                place.address,
                place.port,
                place.size,
                is_master=place.rank == 0,
                timeout=timeout,
                # Rank 0 has listened there since it named the port: nobody else can have taken it.
                master_listen_fd=place.listening,
            )
            dist.init_process_group(
                # Gloo as well: what is told on the CPU must not wait for the GPU.
                "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
                store=store,
                rank=place.rank,
                world_size=place.size,
                timeout=timeout,
            )
            mesh = init_device_mesh(device, (place.size,))
            met = cls(place.rank, place.size, mesh)
            met.gather(None)
        except RuntimeError as error:  # torch's own errors are such
            raise RanksError(
                f"learner rank {place.rank} of {place.size} did not meet the others at "
                f"{place.address}:{place.port} within learner.deadline_s={deadline_s:g}: their nodes "
                "must reach each other at any port (GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the "
                f"network interface): {error}"
            ) from error
        return met

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all: it writes and publishes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in their order. Every rank has to call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def deal(self, num_tokens: Sequence[int]) -> list[tuple[int, bool]]:
        """Which micro-batches this rank computes, by their tokens: index, and whether it counts.

        Ranks wait for each other in every pass, so that each gets as many, and those of like size at
        once. Where there are none left, it computes one that is another's, which does not count.
        """
        order = sorted(range(len(num_tokens)), key=lambda index: -num_tokens[index])
        work = []
        for start in range(0, len(order), self.size):
            mine = start + self.rank
            work.append((order[mine], True) if mine < len(order) else (order[-1], False))
        return work

    def close(self) -> None:
        """Leave the others."""
        if self.size > 1:
            dist.destroy_process_group()
