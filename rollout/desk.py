"""`Desk`: what can be asked of a run while it goes on, whoever asks and however it got here.

Knows nothing of HTTP. What cannot be done raises `Refused`, and changes nothing.
"""

import logging
from collections.abc import Callable
from itertools import islice

from configs.schema import PoolSection
from rollout.books import Books
from rollout.buffer import ReplayQueue
from rollout.files import RolloutRow
from rollout.gate import Gate
from rollout.ledger import Ledger
from rollout.metrics import MetricsWriter
from rollout.pools import Pools, Version
from rollout.prometheus import Exposition
from rollout.quarantine import Quarantine
from rollout.refusals import Refused
from rollout.saving import Saver
from rollout.status import PoolInfo, Saved, Status

logger = logging.getLogger(__name__)


class Desk:
    """Operations on one run, from between its stages."""

    def __init__(
        self,
        *,
        status: Callable[[], Status],
        gate: Gate,
        saver: Saver,
        pools: Pools,
        quarantine: Quarantine,
        queue: ReplayQueue,
        ledger: Ledger,
        books: Books,
        metrics: MetricsWriter,
        is_training: Callable[[], bool],
        wake: Callable[[], None],
    ) -> None:
        """`wake` has training look whether something was asked of it."""
        self.status = status
        """The run at this moment."""
        self._gate = gate
        self._saver = saver
        self._pools = pools
        self._quarantine = quarantine
        self._queue = queue
        self._ledger = ledger
        self._books = books
        self._metrics = metrics
        self._is_training = is_training
        self._wake = wake

    def metrics(self) -> str:
        """Values of the newest step and the counters of the ledger, as Prometheus reads them."""
        text = Exposition()
        status = self.status()
        text.gauge("is_paused", status.is_paused)
        text.gauge("uptime_seconds", status.uptime_s)
        counts = self._ledger.counts()
        for state, number in counts.groups.items():
            text.counter("groups_total", number, state=state)
        for state, number in counts.rollouts.items():
            text.counter("rollouts_total", number, state=state)
        for state, number in status.groups.items():
            if state not in counts.groups:
                text.gauge("groups_live", number, state=state)
        if self._metrics.recent:
            text.values(self._metrics.recent[-1])
        return str(text)

    def rollouts(self, limit: int) -> list[RolloutRow]:
        """The rollouts whose groups ended last, newest first."""
        return list(islice(reversed(self._books.recent), limit))

    def pools(self) -> list[PoolInfo]:
        """Every version of a pool that this run had."""
        return [self._info(version) for version in self._pools.versions]

    async def add_pool(self, name: str, section: PoolSection, *, replace: bool) -> PoolInfo:
        """Draw from a pool from now on. Raises ConfigError, Refused, NotThere."""
        self._check_trains()
        return self._info(await self._pools.add(name, section, replace=replace))

    async def remove_pool(self, name: str) -> PoolInfo:
        """Draw nothing of a pool any more. Raises Refused, NotThere."""
        self._check_trains()
        return self._info(await self._pools.remove(name))

    def lift(self, name: str) -> PoolInfo:
        """Draw again what of a pool is in quarantine. Raises NotThere."""
        version = self._pools.live(name)
        number = self._quarantine.lift(name)
        logger.info("pool %s: %d quarantined tasks and environments are drawn again", name, number)
        return self._info(version)

    def pause(self) -> Status:
        """Grant nothing new and begin no step; what plays ends. Safe to call again."""
        self._gate.pause()
        return self.status()

    def resume(self) -> Status:
        """Go on after a pause. Safe to call again."""
        self._gate.resume()
        return self.status()

    async def checkpoint(self) -> Saved:
        """A complete checkpoint between two steps, as soon as there may be one. Raises Refused."""
        if self._is_training():
            self._wake()
            return await self._saver.ask()
        if saved := self._saver.saved(self.status().step):
            return saved
        raise Refused("nothing is trained now that could be saved: ask again after the first step")

    def _check_trains(self) -> None:
        status = self.status()
        if status.step >= status.steps:
            raise Refused("nothing is trained any more: pools of a run change while it trains")

    def _info(self, version: Version) -> PoolInfo:
        return PoolInfo(
            name=version.key.name,
            version=version.key.version,
            state=version.state,
            source=version.section.source,
            trusted=version.section.trusted,
            weight=version.section.weight,
            train=list(version.source.train),
            envs=list(version.source.envs),
            groups_live=self._queue.num_live(version.key),
            is_evaluated=version.is_evaluated,
            layers=version.layers,
            quarantine=self._quarantine.barred_of(version.key),
            tool_faults=self._quarantine.tool_faults(version.key),
        )
