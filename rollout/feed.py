"""What is granted to whom: free slots and room become grants; what ended is taken back.

    curriculum, evaluation -- tasks --> [feed] -- grants, cancellations --> actors

Decides nothing about training: slots say how much may start, the fleet who has room for it.
"""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable

from configs.schema import RunConfig
from rollout.buffer import Group, ReplayQueue
from rollout.curriculum import Curriculum
from rollout.evaluate import Evaluation
from rollout.fleet import Fleet, Stopwatch
from rollout.gate import Gate
from rollout.types import Grant, Rollout


class Feed:
    """Hands out whole groups, retried members and evaluations."""

    def __init__(
        self,
        config: RunConfig,
        *,
        fleet: Fleet,
        queue: ReplayQueue,
        curriculum: Curriculum,
        gate: Gate,
        clock: Callable[[], float],
    ) -> None:
        self._rollout = config.rollout
        self._fleet = fleet
        self._queue = queue
        self._curriculum = curriculum
        self._gate = gate
        self._retries: deque[tuple[str, Grant]] = deque()
        self._cancels: dict[str, list[str]] = defaultdict(list)
        self._blocked = Stopwatch(clock)
        self._wake = asyncio.Event()
        self.is_training = False
        """Whether groups are granted."""
        self.evaluation: Evaluation | None = None
        """What is played instead of groups."""

    def wake(self) -> None:
        """There may be something to hand out."""
        self._wake.set()

    def retry(self, actor: str, grant: Grant) -> None:
        """Play members once more, on the actor that had them."""
        self._retries.append((actor, grant))

    def retry_member(self, actor: str, group: Group, rollout: Rollout) -> None:
        """Play a faulted member of a group once more."""
        grant = Grant(
            group_id=group.id,
            task=group.task,
            members=[rollout.member],
            attempt=rollout.attempt + 1,
            temperature=self._rollout.temperature,
        )
        self.retry(actor, grant)

    def cancel(self, group: Group) -> None:
        """Stop what of an ended group is still played."""
        if group.actor:
            self._cancels[group.actor].append(group.id)

    async def run(self) -> None:
        """Consumes free slots and room; produces grants and cancellations. An endless stage.

        Waits for: a slot, room on an actor. Unblocked by: listen, sync, train, evaluate.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            cancels, self._cancels = self._cancels, defaultdict(list)
            for name, group_ids in cancels.items():
                await self._fleet.cancel(name, group_ids)
            while self._retries:
                name, grant = self._retries.popleft()
                # A group may have ended since: what it still had to play is of no use.
                if grant.is_eval or self._queue.group(grant.group_id) is not None:
                    await self._fleet.play(name, [grant])
            for name in self._fleet.by_room():
                grants = self._claim(name)
                if grants:
                    await self._fleet.play(name, grants)
            self.note_blocked()

    def note_blocked(self) -> None:
        """Time in which actors have room and no slot is free: generation waits for the learner."""
        is_granting = self.is_training and not self._gate.is_paused
        has_room = self._fleet.room(self._fleet.by_room()[0]) >= self._rollout.group_size
        self._blocked.note(is_granting and self._queue.free_slots == 0 and has_room)

    def take_blocked_s(self) -> float:
        """Seconds of that up to the last note, which then count from 0."""
        return self._blocked.take()

    def _claim(self, name: str) -> list[Grant]:
        """Whole groups for an actor: its fair share of the free slots, as far as it has room."""
        if self._gate.is_paused:
            return []
        if self.evaluation is not None:
            return self.evaluation.next(self._fleet.room(name))
        if not self.is_training:
            return []
        size = self._rollout.group_size
        share = math.ceil(self._queue.free_slots / len(self._fleet))
        grants = []
        for _ in range(min(share, self._queue.free_slots, self._fleet.room(name) // size)):
            draw = self._curriculum.next()
            group = self._queue.create(draw.task, attempt=draw.attempt)
            self._queue.start(group, actor=name, version=self._fleet.versions[name])
            grants.append(
                Grant(
                    group_id=group.id,
                    task=draw.task,
                    members=list(range(size)),
                    temperature=self._rollout.temperature,
                )
            )
        return grants
