"""What is drawn no more because it kept failing: tasks, and environments as a whole.

A task whose rollouts faulted three times in its environment, one of them the second attempt of a member,
is not drawn again. Nor is an environment three groups of which, one after the other, faulted and got no
verdict at all. Engine faults and rollouts that took too long in all blame nobody here.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from envpool.task import PoolKey, Task
from rollout.buffer import MEMBER_RETRIES, Group
from rollout.fault_log import last_line
from rollout.types import Rollout

logger = logging.getLogger(__name__)

# Faulted rollouts of a task, and faulting groups of an environment, that are enough.
TASK_FAULTS = 3
ENV_GROUPS = 3
# Tasks whose faults are counted: a long run has many that faulted once.
MAX_COUNTED = 10_000

Env = tuple[PoolKey, str]


class Barred(msgspec.Struct, frozen=True, kw_only=True, tag="quarantine", tag_field="kind"):
    """A task or an environment in quarantine; also a line of `events.jsonl`."""

    pool: str
    version: str
    env: str
    task: str = ""
    """Its id; empty for the whole environment."""
    reason: str
    at_s: float

    @property
    def key(self) -> PoolKey:
        return PoolKey(self.pool, self.version)


class ToolFaults(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of a tool that ended or hung its environment's process, or failed otherwise."""

    env: str
    tool: str
    count: int


class Quarantine:
    """Counts faults by task and environment; says what may not be drawn."""

    def __init__(
        self, *, note: Callable[[msgspec.Struct], None], clock: Callable[[], float]
    ) -> None:
        self._note = note
        self._clock = clock
        self._tasks: dict[tuple[PoolKey, str], Barred] = {}
        self._envs: dict[Env, Barred] = {}
        # Faults of each task, and whether a second attempt is among them.
        self._faults: Counter[tuple[PoolKey, str]] = Counter()
        self._is_final: set[tuple[PoolKey, str]] = set()
        # Groups that faulted since the last one with a verdict.
        self._groups: Counter[Env] = Counter()
        self._tools: Counter[tuple[PoolKey, str, str]] = Counter()

    def bars(self, task: Task) -> bool:
        """Whether a task may not be drawn."""
        if not self._tasks and not self._envs:
            return False
        return (task.pool_key, task.id) in self._tasks or self.bars_env(task.pool_key, task.env)

    def bars_env(self, key: PoolKey, env: str) -> bool:
        """Whether nothing of an environment may be drawn."""
        return (key, env) in self._envs

    @property
    def barred(self) -> list[Barred]:
        """All that is in quarantine."""
        return [*self._envs.values(), *self._tasks.values()]

    def barred_of(self, key: PoolKey) -> list[Barred]:
        """What of a version of a pool is in quarantine."""
        return [one for one in self.barred if one.key == key]

    def tool_faults(self, key: PoolKey) -> list[ToolFaults]:
        """Faults by tool, the most frequent first."""
        return [
            ToolFaults(env=env, tool=tool, count=count)
            for (of, env, tool), count in self._tools.most_common()
            if of == key
        ]

    def note(self, rollout: Rollout) -> None:
        """An attempt at a task of training ended."""
        key = PoolKey(rollout.pool, rollout.pool_version)
        for action in rollout.faulty_actions:
            self._tools[key, rollout.env, tool_of(action)] += 1
        if rollout.is_env_fault:
            self._note_task(key, rollout)

    def note_group(self, group: Group) -> None:
        """Every member of a group ended."""
        place = group.task.pool_key, group.task.env
        faults = [rollout for rollout in group.rollouts if rollout.is_env_fault]
        if group.trainable:
            del self._groups[place]
        elif faults:
            self._groups[place] += 1
            if self._groups[place] >= ENV_GROUPS:
                self.bar_env(
                    *place,
                    f"{ENV_GROUPS} groups in a row faulted, the last at {group.task.id}: "
                    f"{last_line(faults[-1].error)}",
                )

    def _note_task(self, key: PoolKey, rollout: Rollout) -> None:
        place = key, rollout.task_id
        if place not in self._faults and len(self._faults) >= MAX_COUNTED:
            self._faults.clear()
            self._is_final.clear()
        self._faults[place] += 1
        if rollout.attempt >= MEMBER_RETRIES:
            self._is_final.add(place)
        is_enough = self._faults[place] >= TASK_FAULTS and place in self._is_final
        if is_enough and place not in self._tasks:
            reason = f"{self._faults[place]} rollouts faulted: {last_line(rollout.error)}"
            self._tasks[place] = barred = self._barred(key, rollout.env, reason, rollout.task_id)
            self._note(barred)
            logger.warning("task %s is quarantined: %s", rollout.task_id, reason)

    def bar_env(self, key: PoolKey, env: str, reason: str) -> None:
        """Draw nothing of an environment any more."""
        if (key, env) not in self._envs:
            self._envs[key, env] = barred = self._barred(key, env, reason)
            self._note(barred)
            logger.warning(
                "env %s of pool %s is quarantined: %s; once it is right: launch.py pool lift %s",
                env,
                key.name,
                reason,
                key.name,
            )

    def lift(self, name: str) -> int:
        """Forget every version of a pool; returns how much was in quarantine."""
        number = sum(barred.pool == name for barred in self.barred)

        def is_other(key: PoolKey) -> bool:
            return key.name != name

        self._tasks = {place: one for place, one in self._tasks.items() if is_other(place[0])}
        self._envs = {place: one for place, one in self._envs.items() if is_other(place[0])}
        for env in [env for env in self._groups if not is_other(env[0])]:
            del self._groups[env]
        for place in [place for place in self._faults if not is_other(place[0])]:
            del self._faults[place]
            self._is_final.discard(place)
        return number

    def restore(self, barred: Iterable[Barred]) -> None:
        """Go on from a checkpoint."""
        for one in barred:
            if one.task:
                self._tasks[one.key, one.task] = one
            else:
                self._envs[one.key, one.env] = one

    def _barred(self, key: PoolKey, env: str, reason: str, task: str = "") -> Barred:
        return Barred(
            pool=key.name,
            version=key.version,
            env=env,
            task=task,
            reason=reason,
            at_s=self._clock(),
        )


class _Call(msgspec.Struct, frozen=True):
    name: str


def tool_of(action: str) -> str:
    """The tool that an action calls; what is no call has none."""
    try:
        return msgspec.json.decode(action.encode(errors="replace"), type=_Call).name
    except msgspec.MsgspecError:
        return "(no call)"
