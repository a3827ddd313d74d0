"""What stands in for NCCL without a GPU: the same ends of vLLM, whose buffers go through a TCP store.

The rendezvous, the packing, the order of calls and what the model does with tensors are vLLM's own.
`rollout.vllm_api.Worker` is found here too, so that the processes of an engine import this.
"""
# pyright: reportMissingImports=false

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.distributed.utils import StatelessProcessGroup
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerInitInfo,
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferEngine,
)
from vllm.distributed.weight_transfer.packed_tensor import pack_tensors, unpack_tensor

from rollout.vllm_api import Worker, _pack_tied_head

BACKEND = "millrace_test_store"

ARGUMENTS = {
    "worker_extension_cls": f"{__name__}.{Worker.__name__}",
    "weight_transfer_config": {"backend": BACKEND},
}
"""For `engine.vllm.arguments`."""


class StoreTransfer(NCCLWeightTransferEngine):
    """The engine's end."""

    def init_transfer_engine(self, init_info: Any) -> None:
        assert init_info.packed
        self.packed_buffer_size_bytes = init_info.packed_buffer_size_bytes
        self._group = StatelessProcessGroup.create(
            host=init_info.master_address,
            port=init_info.master_port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world_size=init_info.world_size,
        )

    def receive_weights(self, update_info: Any) -> None:
        infos = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        part: list[tuple[str, list[int], torch.dtype, int]] = []
        for name, dtype_name, shape in infos:
            dtype = getattr(torch, dtype_name)
            part.append((name, shape, dtype, math.prod(shape) * dtype.itemsize))
            if sum(one[3] for one in part) > self.packed_buffer_size_bytes:
                self._receive(part)
                part = []
        if part:
            self._receive(part)
        self._group.barrier()

    def _receive(self, part: list[tuple[str, list[int], torch.dtype, int]]) -> None:
        names, shapes, dtypes, sizes = (list(column) for column in zip(*part, strict=True))
        packed = self._group.broadcast(torch.empty(0), src=0)
        assert packed.numel() == sum(sizes)
        model: Any = self.model
        model.load_weights(unpack_tensor(packed, names, shapes, dtypes, sizes))

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        _pack_tied_head(self.model)  # on a CPU alone

    def shutdown(self) -> None:
        pass


@dataclass
class StoreInit(NCCLTrainerInitInfo):
    """Names the stand-in."""

    backend: ClassVar[str] = BACKEND


class StoreTrainer(NCCLTrainerWeightTransferEngine):
    """The learner's end."""

    group: StatelessProcessGroup

    @classmethod
    def trainer_init(cls, init_info: Any, *, client: Any, source: Any = None) -> "StoreTrainer":
        engine = cls(
            client=client,
            source=source,
            is_sender=init_info.is_sender,
            packed_buffer_size_bytes=init_info.packed_buffer_size_bytes,
        )
        if engine.is_sender:
            engine.group = StatelessProcessGroup.create(
                host=init_info.master_address,
                port=init_info.master_port,
                rank=0,
                world_size=init_info.world_size,
            )
        return engine

    def _broadcast(self, source: Any, meta: Any) -> None:
        if not self.is_sender:
            super()._broadcast(source, meta)
            return
        pairs = self._checked_iter(source, meta)
        while (
            chunk := pack_tensors(pairs, lambda item: item[1], self.packed_buffer_size_bytes)
        ) is not None:
            self.group.broadcast(chunk.packed_tensor, src=0)
        # A store takes what nobody reads; NCCL waits for the readers.
        self.group.barrier()

    def shutdown(self) -> None:
        pass


WeightTransferEngineFactory.register_engine(BACKEND, StoreTransfer)
WeightTransferTrainerFactory.register_engine(BACKEND, StoreTrainer)
