"""Sends weights from the learner's GPUs straight into those of engines, by vLLM's own NCCL transfer.

    publish: says what will be sent ---> coordinator ---> engine: pause, start, update ...
    send: gathers tensor by tensor, packs, broadcasts ---------------------------^

One group for each engine: the learner is rank 0, the engine's workers are the others. vLLM would also
drive the engine from here; that is the coordinator's part, so the client handed to it does nothing.

With sharded weights every learner rank has a `Sender` and makes the same calls except `open`: rank 0
sends, and the others take part in gathering.

Only `make_trainer` imports this, and only with `weights.transport="nccl"`: it brings vLLM.
"""
# pyright: reportMissingImports=false

import math
import os
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rollout.weights import Endpoint, Manifest, TensorSpec, WeightsError, note_version

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # those of vLLM's own imports
    from vllm.distributed.weight_transfer.base import (
        ParamMeta,
        WeightSource,
        materialize_full_tensor,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo


class Sender:
    """Publishes by sending; what `Publisher` is for files. Owns the groups, until `close`."""

    def __init__(
        self,
        *,
        log: Path,
        num_workers: int,
        buffer_bytes: int,
        num_buffers: int,
        rank: int = 0,
        dtype: torch.dtype | None = None,
        init_info: type[Any] = NCCLTrainerInitInfo,
    ) -> None:
        """`log` names the newest version that may have been published; `num_workers` are an engine's.

        Parameters are sent as `dtype`: that of the model, where slices of them are kept in another.
        `init_info`: its `backend` says which transfer vLLM uses.
        """
        self._log = log
        self._num_workers = num_workers
        self._buffer_bytes = buffer_bytes
        self._num_buffers = num_buffers
        self._rank = rank
        self._init_info = init_info
        self._source = _Published(dtype)
        self._endpoints: dict[str, Endpoint] = {}
        self._groups: dict[str, Any] = {}
        self._version: int | None = None

    def publish(
        self,
        tensors: Mapping[str, Tensor],
        *,
        version: int,
        step: int,
        made: Callable[[], Iterator[tuple[str, Tensor]]] | None = None,
    ) -> Manifest:
        """Say what `send` will send: these tensors, as they are then, or what `made` makes of them.

        Raises WeightsError unless versions strictly increase.
        """
        if self._version is not None and version <= self._version:
            raise WeightsError(
                f"version {version} follows version {self._version}: versions strictly increase"
            )
        if self._rank == 0:
            note_version(self._log, version)
        self._source.tensors, self._source.made = dict(tensors), made
        self._version = version
        specs = [
            TensorSpec(one.name, str(one.dtype).removeprefix("torch."), list(one.shape))
            for one in self._source.metadata()
        ]
        num_bytes = sum(
            math.prod(one.shape) * one.dtype.itemsize for one in self._source.metadata()
        )
        return Manifest(
            version=version, step=step, num_bytes=num_bytes, transport="nccl", tensors=specs
        )

    def open(self, engine: str, address: str) -> Endpoint:
        """Choose where `join` will wait for an engine: a port of this machine's `address`."""
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = probe.getsockname()[1]
        self._endpoints[engine] = Endpoint(
            address=address,
            port=port,
            world_size=1 + self._num_workers,
            buffer_bytes=self._buffer_bytes,
            num_buffers=self._num_buffers,
        )
        return self._endpoints[engine]

    def join(self, engine: str) -> None:
        """Wait for the workers of an engine where `open` said; a group it was in is given up."""
        if (before := self._groups.pop(engine, None)) is not None:
            before.shutdown()
        # Other ranks than 0 are in no group, and meet nobody.
        endpoint = self._endpoints.pop(engine) if self._rank == 0 else None
        self._groups[engine] = WeightTransferTrainerFactory.trainer_init(
            self._init_info(
                master_address=endpoint.address if endpoint else "",
                master_port=endpoint.port if endpoint else 0,
                world_size=1 + self._num_workers,
                packed=True,
                packed_buffer_size_bytes=self._buffer_bytes,
                packed_num_buffers=self._num_buffers,
                rank=self._rank,
            ),
            client=_Coordinated(),
            source=self._source,
        )

    def send(self, engine: str, version: int) -> None:
        """Send what was published last, and return when it has left; blocks until the engine loads it.

        Raises WeightsError for another version, or an engine that never joined.
        """
        if version != self._version:
            raise WeightsError(
                f"version {version} cannot be sent: the weights here are those of {self._version}"
            )
        if engine not in self._groups:
            raise WeightsError(f"{engine} never joined a group to be sent weights in")
        self._groups[engine].send_weights()

    def close(self) -> None:
        """Leave the groups."""
        while self._groups:
            _, group = self._groups.popitem()
            group.shutdown()


class _Published(WeightSource):
    """The tensors published last; a sharded one is gathered when its turn comes, and let go of."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        self.tensors: Mapping[str, Tensor] = {}
        self.made: Callable[[], Iterator[tuple[str, Tensor]]] | None = None

    def metadata(self) -> list[Any]:
        return [
            ParamMeta(name, self._type(tensor), tuple(tensor.shape))
            for name, tensor in self.tensors.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        if self.made is not None:
            yield from self.made()
            return
        for name, tensor in self.tensors.items():
            yield name, materialize_full_tensor(tensor.detach()).to(self._type(tensor))

    def _type(self, tensor: Tensor) -> torch.dtype:
        is_parameter = isinstance(tensor, nn.Parameter)
        return self._dtype if self._dtype is not None and is_parameter else tensor.dtype


class _Coordinated:
    """Stands where vLLM would reach the engine from the learner: the coordinator does that."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        pass

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass
