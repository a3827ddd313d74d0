"""A worker of vLLM that fails in the middle of loading weights, when a file beside them says how.

Imported by the worker alone: `engine.vllm.arguments` are `tests.faults.ARGUMENTS`.
"""
# pyright: reportMissingImports=false

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rollout.vllm_api import FileTransfer
from rollout.vllm_api import Worker as SoundWorker
from tests.faults import BACKEND, taken_fault


class Worker(SoundWorker):
    """To be named as the engine's `worker_extension_cls`."""


class FaultyTransfer(FileTransfer):
    """Fails when half of the tensors are replaced."""

    def receive_weights(self, update_info: Any) -> None:
        self.path = update_info.manifest["path"]
        super().receive_weights(update_info)

    def _placed(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for index, pair in enumerate(super()._placed(tensors)):
            if index == len(tensors) // 2:
                _fail(taken_fault(self.path))
            yield pair


def _fail(how: str) -> None:
    match how:
        case "raise":
            raise RuntimeError("loading failed half-way")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(3600)
        case _:
            return


WeightTransferEngineFactory.register_engine(BACKEND, FaultyTransfer)
