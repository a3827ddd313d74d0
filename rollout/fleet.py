"""The actors as the coordinator sees them: what each holds, how much room it has, what it reports."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from rollout.engine import UpdateReport
from rollout.metrics import Values, engine_values
from rollout.ports import ActorPort
from rollout.types import EngineStats, Grant
from rollout.weights import Manifest

Send = Callable[[str, int], Coroutine[Any, Any, None]]
"""Sends a version to the engine of an actor, by its name."""


class Stopwatch:
    """Seconds for which something was the case."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self._total_s = 0.0

    def note(self, is_case: bool) -> None:
        """From now on it is the case, or it is not."""
        now = self._clock()
        if self._since is not None:
            self._total_s += now - self._since
        self._since = now if is_case else None

    def take(self) -> float:
        """The seconds up to the last note, which then count from 0."""
        total_s, self._total_s = self._total_s, 0.0
        return total_s


class Fleet:
    """Every live actor. Versions are those acknowledged: an engine never holds less."""

    def __init__(
        self,
        actors: Mapping[str, ActorPort],
        *,
        members_each: int,
        deadline_s: float,
        version: int,
        clock: Callable[[], float],
        send: Send | None = None,
    ) -> None:
        """`send`: the learner's, for versions that are sent."""
        self._actors = dict(actors)
        self._send = send
        self._members_each = members_each
        self._deadline_s = deadline_s
        self._clock = clock
        self._in_flight = dict.fromkeys(self._actors, 0)
        self._stats: dict[str, EngineStats] = {}
        self._stats_before: dict[str, EngineStats] = {}
        self._sync_s = 0.0
        self.versions = dict.fromkeys(self._actors, version)

    def __len__(self) -> int:
        return len(self._actors)

    def by_room(self) -> list[str]:
        """The actors' names, the one with the most room first."""
        return sorted(self._actors, key=self.room, reverse=True)

    @property
    def oldest_version(self) -> int:
        """What every live engine holds at least."""
        return min(self.versions.values())

    @property
    def in_flight(self) -> dict[str, int]:
        """Members being played, by actor."""
        return dict(self._in_flight)

    @property
    def is_idle(self) -> bool:
        return not any(self._in_flight.values())

    def room(self, name: str) -> int:
        """Members that an actor can begin."""
        return self._members_each - self._in_flight[name]

    async def play(self, name: str, grants: list[Grant]) -> None:
        """Hand grants to an actor."""
        self._in_flight[name] += sum(len(grant.members) for grant in grants)
        await self._actors[name].play(grants)

    async def cancel(self, name: str, group_ids: list[str]) -> None:
        """Stop the members of these groups on an actor."""
        await self._actors[name].cancel(group_ids)

    def member_ended(self, name: str) -> None:
        """A member on this actor ended."""
        self._in_flight[name] -= 1
        assert self._in_flight[name] >= 0, f"{name} ended a member it did not have"

    async def update(self, manifest: Manifest) -> None:
        """Load a version into every engine. Raises when one fails or is late.

        Files are loaded at once. What is sent goes to one engine after another, so that each stands
        still for its own transfer alone.
        """
        begun = self._clock()
        if manifest.is_sent:
            for name in self._actors:
                await self._update(name, manifest)
        else:
            async with asyncio.TaskGroup() as group:
                for name in self._actors:
                    group.create_task(self._update(name, manifest), name=f"update-{name}")
        self._sync_s += self._clock() - begun

    async def _update(self, name: str, manifest: Manifest) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                if manifest.is_sent:
                    report = await self._sent(name, manifest)
                else:
                    report = await self._actors[name].update_weights(manifest)
        except TimeoutError as error:
            raise RuntimeError(
                f"{name} did not load version {manifest.version} within "
                f"weights.deadline_s={self._deadline_s:g}"
            ) from error
        self.versions[name] = report.version

    async def _sent(self, name: str, manifest: Manifest) -> UpdateReport:
        """Let an engine load what the learner sends meanwhile."""
        assert self._send is not None, "what is sent comes from a learner"
        try:
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(
                    self._actors[name].update_weights(manifest), name=f"update-{name}"
                )
                group.create_task(self._send(name, manifest.version), name=f"send-{name}")
        except ExceptionGroup as errors:
            # The first one broke the transfer; the other end only waited.
            first = errors.exceptions[0]
            raise RuntimeError(
                f"version {manifest.version} could not be sent to {name}: {first}; a broken group is of "
                "no more use, so the run ends, and --resume goes on from its newest checkpoint"
            ) from first
        return loading.result()

    def note_stats(self, name: str, stats: EngineStats) -> None:
        """Keep the newest statistics of an engine."""
        self._stats[name] = stats

    def take_values(self, wall_s: float) -> Values:
        """Engine metrics of the last `wall_s` seconds, since the previous call."""
        values = engine_values(self._stats, self._stats_before, wall_s)
        self._stats_before = dict(self._stats)
        values["time/sync_s"], self._sync_s = self._sync_s, 0.0
        return values
