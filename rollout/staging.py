"""New weights beside the old ones: read, checked and copied while the engine serves, then swapped in.

A model takes its parameters' storage by reference, so installing is a pointer per parameter and the
stall does not grow with the model. Nothing is touched unless every tensor fits.
"""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rollout.weights import Manifest, WeightsError, read_tensors

# As torch aligns what it allocates itself.
_ALIGNED_BYTES = 64


class Memory:
    """Two blocks: of the weights in use, and for the next ones.

    Used again, as filling fresh memory takes several times as long as the copy itself.
    """

    def __init__(self) -> None:
        self._in_use: mmap.mmap | None = None
        self._next: mmap.mmap | None = None

    def room(self, num_bytes: int) -> mmap.mmap:
        """The block that is not in use, at least so large."""
        if self._next is None or len(self._next) < num_bytes:
            self._next = mmap.mmap(
                -1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
        return self._next

    def swap(self) -> None:
        """What was given last is in use now."""
        self._in_use, self._next = self._next, self._in_use


@dataclass(slots=True, kw_only=True, frozen=True)
class Staged:
    """The checked tensors of a version, ready to install."""

    version: int
    pairs: list[tuple[nn.Parameter, Tensor]]
    """Each parameter and its new storage."""
    memory: Memory

    def install(self) -> None:
        """Swap all tensors in; must not run during a forward pass. The old ones are written over next."""
        for parameter, tensor in self.pairs:
            parameter.data = tensor
        self.memory.swap()


def stage(model: nn.Module, manifest: Manifest, memory: Memory) -> Staged:
    """Read the weights of `manifest` for `model`, which is left alone, into `memory`, which is its alone.

    Raises WeightsError when the file is not the one published, or a name, shape or number type is
    not the model's.
    """
    tensors = read_tensors(manifest)
    # With tied embeddings two names give the same parameter, and one of them suffices.
    wanted = dict(model.named_parameters(remove_duplicate=False))
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise _refusal(manifest, f"has tensors that the model lacks: {unknown[:4]}")
    chosen: dict[nn.Parameter, Tensor] = {}
    for name, tensor in tensors.items():
        parameter = wanted[name]
        if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
            raise _refusal(
                manifest,
                f"has {name} as {tuple(tensor.shape)} {tensor.dtype}, and the model as "
                f"{tuple(parameter.shape)} {parameter.dtype}",
            )
        if parameter in chosen and not torch.equal(chosen[parameter], tensor):
            raise _refusal(manifest, f"has {name} different from the tensor it is tied to")
        chosen[parameter] = tensor
    if missing := sorted(name for name, parameter in wanted.items() if parameter not in chosen):
        raise _refusal(manifest, f"lacks {missing[:4]}")
    # Copied: the tensors are views of the file's pages, not aligned for fast kernels.
    return Staged(version=manifest.version, pairs=_copies(chosen, memory), memory=memory)


def _copies(
    chosen: dict[nn.Parameter, Tensor], memory: Memory
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter and its new tensor, all in one block."""
    starts, end = [], 0
    for tensor in chosen.values():
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
    block = memory.room(end)
    pairs = []
    for (parameter, tensor), start in zip(chosen.items(), starts, strict=True):
        count = tensor.numel()
        room = (
            torch.frombuffer(block, dtype=tensor.dtype, count=count, offset=start)
            if count
            else torch.empty(0, dtype=tensor.dtype)
        )
        pairs.append((parameter, room.view(tensor.shape).copy_(tensor)))
    return pairs


def _refusal(manifest: Manifest, problem: str) -> WeightsError:
    return WeightsError(
        f"version {manifest.version}: {manifest.path} {problem}; publish the weights of this model"
    )
