"""Publishing while the next batch is trained: a copy of the weights now, the file in a thread."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from learner.publish import Publisher
from rollout.weights import NUM_BUFFERS, Adapter, Manifest, WeightsError


class Overlapping:
    """Publishes through a `Publisher`, one version after another, in a thread of its own.

    What fails there is raised by whoever asks for that version, and by every later call: no version
    follows one that could not be written. `published` may be called from another thread.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish")
        self.copies: dict[str, Tensor] = {}
        """The weights of the newest version, in memory that is used again."""
        self._newest: Future[Manifest] | None = None
        self._by_version: dict[int, Future[Manifest]] = {}

    def publish(
        self,
        tensors: Mapping[str, Tensor],
        *,
        version: int,
        step: int,
        adapter: Adapter | None = None,
    ) -> None:
        """Begin to publish `version`, see `Publisher`; on return the tensors may change.

        Waits for the version before. Raises what that one failed with.
        """
        self.wait()
        self._copy(tensors)
        self._newest = self._thread.submit(
            self._publisher.publish, self.copies, version=version, step=step, adapter=adapter
        )
        # Replaced as a whole: another thread may be looking into it.
        recent = [*self._by_version.items(), (version, self._newest)]
        self._by_version = dict(recent[-NUM_BUFFERS:])

    def published(self, version: int) -> Manifest:
        """Wait until a version is written, one of the last two. Raises what it failed with."""
        future = self._by_version.get(version)
        if future is None:
            known = ", ".join(map(str, self._by_version)) or "none"
            raise WeightsError(f"version {version} is not being published (of late: {known})")
        return future.result()

    def wait(self) -> None:
        """Wait until the newest version is written. Raises what it failed with."""
        if self._newest is not None:
            self._newest.result()

    def close(self) -> None:
        """Remove the files. Raises what the newest version failed with."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._publisher.close()

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into the same memory each time: fresh memory takes twice as long to fill."""
        self.copies = {name: self._like(name, tensor) for name, tensor in tensors.items()}
        for name, copy in self.copies.items():
            copy.copy_(tensors[name].detach())

    def _like(self, name: str, tensor: Tensor) -> Tensor:
        old = self.copies.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old
        # Page-locked where a GPU copies into it.
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
