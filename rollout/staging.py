"""New weights beside the old ones: read, checked and copied while the engine serves, then swapped in.

A model takes its parameters' storage by reference, so installing is a pointer per parameter and the
stall does not grow with the model. Nothing is touched unless every tensor fits.
"""

import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rollout.weights import Manifest, WeightsError, read_tensors

# As torch aligns what it allocates itself.
_ALIGNED_BYTES = 64


@dataclass(slots=True, kw_only=True, frozen=True)
class Staged:
    """The checked tensors of a version, ready to install."""

    version: int
    pairs: list[tuple[nn.Parameter, Tensor]]
    """Each parameter and its new storage."""

    def install(self) -> None:
        """Swap all tensors in; must not run during a forward pass."""
        for parameter, tensor in self.pairs:
            parameter.data = tensor


def stage(model: nn.Module, manifest: Manifest) -> Staged:
    """Read the weights of `manifest` for `model`, which is left alone.

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
    return Staged(version=manifest.version, pairs=_copies(chosen))


def _copies(chosen: dict[nn.Parameter, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter and its tensor in one new block of memory.

    In large pages where the system has them: filling fresh memory 4 KB at a time takes longer than all
    the rest of an update.
    """
    starts, end = [], 0
    for tensor in chosen.values():
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES
    block = mmap.mmap(-1, max(1, end), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
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
