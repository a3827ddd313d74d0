"""Versions on their way from the learner to the engines.

    train -- announced --> [sync]: written by the learner, then loaded by the engines --> held

A version is announced by the step that produced it. The learner writes it while the next step is
trained, unless the step's report came with the manifest.
"""

import asyncio
from collections.abc import Callable

from rollout.fleet import Fleet
from rollout.ports import LearnerPort
from rollout.types import StepReport
from rollout.weights import NUM_BUFFERS, Manifest


class Handover:
    """Owns which version is the newest, and has the engines load it."""

    def __init__(
        self,
        fleet: Fleet,
        learner: LearnerPort | None,
        *,
        version: int,
        deadline_s: float,
        on_written: Callable[[Manifest], None],
        on_held: Callable[[], None],
    ) -> None:
        """`version`: what the engines begin with. `on_written`: told of what came after its step's report."""
        self._fleet = fleet
        self._learner = learner
        self._deadline_s = deadline_s
        self._on_written = on_written
        self._on_held = on_held
        self._manifest: Manifest | None = None
        self._on_way: int | None = None
        self._wake = asyncio.Event()
        self.version = version
        """The newest that a step has produced, written or not."""

    def announce(self, report: StepReport) -> None:
        """A step was trained, which may have produced a version."""
        version = report.manifest.version if report.manifest is not None else report.publishing
        if version is not None:
            self._manifest, self.version = report.manifest, version
            self._wake.set()

    def may_publish(self, version: int) -> bool:
        """Whether the step that produces `version` may begin.

        Buffers alternate: the one it is written into must not be on its way any more.
        """
        return self._on_way is None or self._on_way > version - NUM_BUFFERS

    async def run(self) -> None:
        """Consumes announced versions; produces engines that hold them. An endless stage.

        Waits for: train to announce, the learner to write. Unblocks: feed (slots of trained groups),
        train (buffers).
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self.version <= self._fleet.oldest_version:
                continue
            self._on_way = self.version
            await self._fleet.update(self._manifest or await self._written(self.version))
            self._on_way = None
            self._on_held()
            self._wake.set()

    async def _written(self, version: int) -> Manifest:
        assert self._learner is not None, "who announced it is there"
        try:
            async with asyncio.timeout(self._deadline_s):
                manifest = await self._learner.published(version)
        except TimeoutError as error:
            raise RuntimeError(
                f"the learner did not write version {version} within "
                f"weights.deadline_s={self._deadline_s:g}"
            ) from error
        self._on_written(manifest)
        return manifest
