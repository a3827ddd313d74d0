"""How often a model solves tasks: `measure`, with a `Player` that plays one sample of one task.

    tasks x samples -> Player.play -> Played (a reward, or none where nothing was measured) -> Measured

A failure of an endpoint, an engine or an environment is never a loss: the sample is played again, and
counted as unmeasured where that does not help.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec

from envpool.task import Task
from rollout.supervise import root_cause
from rollout.types import StopReason
from synth.records import PassRate

# Episodes of a sample at most: a fault that comes again will come once more.
TRIES = 2
# Characters of an error that are kept.
MAX_ERROR_CHARS = 500


class PlayerError(RuntimeError):
    """The model cannot be played at all: no further sample would fare better. The text has the cure."""


class UnmeasuredError(RuntimeError):
    """No sample of a task could be measured; the text says what failed."""


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """One episode."""

    stop: StopReason
    reward: float | None
    """The environment's verdict; None where the episode failed."""
    calls: int
    """Actions that the environment answered."""
    error: str = ""

    @property
    def is_won(self) -> bool:
        return self.reward is not None and self.reward >= 1.0


class Player(Protocol):
    """A model that plays. Close it."""

    @property
    def name(self) -> str:
        """What the model is called in a `PassRate`."""
        ...

    async def play(self, task: Task, sample: int) -> Played:
        """One episode with the random stream of its sample. Raises PlayerError."""
        ...

    async def close(self) -> None: ...


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the samples of one task."""

    task_id: str
    model: str
    played: tuple[Played, ...]
    """One for each sample, in order: the last episode of it."""

    @property
    def unmeasured(self) -> int:
        """Samples that failed every time."""
        return sum(one.reward is None for one in self.played)

    @property
    def pass_rate(self) -> PassRate | None:
        """Of the samples that were measured; None where there are none."""
        samples = len(self.played) - self.unmeasured
        won = sum(one.is_won for one in self.played)
        return PassRate(model=self.model, won=won, samples=samples) if samples else None

    @property
    def failure(self) -> str:
        """The commonest error of those that failed."""
        errors = Counter(one.error for one in self.played if one.reward is None)
        return errors.most_common(1)[0][0] if errors else ""


async def measure(
    player: Player, tasks: Sequence[Task], samples: int, *, concurrency: int, tries: int = TRIES
) -> list[Measured]:
    """Play `samples` of each task, at most `concurrency` episodes at once. Raises PlayerError."""
    room = asyncio.Semaphore(concurrency)

    async def sample(task: Task, number: int) -> Played:
        async with room:
            played = await player.play(task, number)
            for _ in range(1, tries):
                if played.reward is not None:
                    break
                played = await player.play(task, number)
            return played

    try:
        async with asyncio.TaskGroup() as group:
            running = [
                [
                    group.create_task(sample(task, number), name=f"{task.id}/{number}")
                    for number in range(samples)
                ]
                for task in tasks
            ]
    except ExceptionGroup as errors:
        # One is as good as another: they are all about the model, or a bug.
        raise root_cause(errors) from errors
    return [
        Measured(task_id=task.id, model=player.name, played=tuple(one.result() for one in episodes))
        for task, episodes in zip(tasks, running, strict=True)
    ]


async def pass_rate(
    player: Player, task: Task, samples: int, *, concurrency: int = 8, tries: int = TRIES
) -> PassRate:
    """How often the model solves one task. Raises PlayerError, UnmeasuredError."""
    [found] = await measure(player, [task], samples, concurrency=concurrency, tries=tries)
    if found.pass_rate is None:
        raise UnmeasuredError(
            f"no sample of {task.id} by {player.name} was measured: {found.failure}"
        )
    return found.pass_rate
