"""Ranks of a learner in processes of their own, which do what a test tells all of them to do."""

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from learner.ranks import Ranks
from rollout.types import RankPlace

# Until all processes have imported torch on a busy machine.
START_S = 120.0


class Crew:
    """`size` ranks that met over gloo; `call` has each of them run a function of a test's module."""

    def __init__(self, size: int, *, deadline_s: float = 60.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self.processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, rank, size, deadline_s), daemon=True
            )
            process.start()
            theirs.close()
            self.processes.append(process)
            self._ends.append(ours)
        port = self._receive(0)
        for end in self._ends:
            end.send(port)

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each rank returns, or the exception it raised."""
        self.begin(function, *args)
        return [self._receive(rank) for rank in range(len(self._ends))]

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        for end in self._ends:
            end.send((function, args))

    def answer(self, rank: int) -> Any:
        return self._receive(rank)

    def close(self) -> None:
        for process, end in zip(self.processes, self._ends, strict=True):
            end.close()
            process.join(10.0)
            if process.is_alive():
                process.kill()
                process.join()

    def _receive(self, rank: int) -> Any:
        if not self._ends[rank].poll(START_S):
            raise TimeoutError(f"rank {rank} did not answer")
        return self._ends[rank].recv()


def _work(end: Connection, rank: int, size: int, deadline_s: float) -> None:
    torch.set_num_threads(1)
    listening = None
    if rank == 0:
        opened = socket.create_server(("127.0.0.1", 0))
        end.send(opened.getsockname()[1])
        listening = opened.detach()
    place = RankPlace(
        rank=rank, size=size, address="127.0.0.1", port=end.recv(), listening=listening
    )
    ranks = Ranks.meet(place, device="cpu", deadline_s=deadline_s)
    while True:
        try:
            function, args = end.recv()
        except EOFError:
            break
        try:
            answer = function(ranks, *args)
        except Exception as error:  # noqa: BLE001  the test decides what it means
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        end.send(answer)
    ranks.close()
