"""Evaluation sets: drawn once from the evaluation split, played with fixed weights, never trained on.

The same tasks are played before and after, sampled and greedy, so that the differences are paired.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, Protocol

import msgspec

from configs.load import ConfigError
from configs.schema import EvalSet
from envpool.source import PoolSource
from envpool.task import Config, Split, Task
from rollout.types import Grant, Rollout

# Two-sided 95 % of a normal distribution.
Z95 = 1.96

MODES: Mapping[str, float] = {"sampled": 1.0, "greedy": 0.0}


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Mean reward over the graded rollouts of a set, with a 95 % interval."""

    mean: float | None
    low: float | None
    high: float | None
    count: int
    faults: int
    by_env: dict[str, float]


class Judged(Protocol):
    """A rollout as far as scores go; its row in the log is one, too."""

    @property
    def env(self) -> str: ...
    @property
    def reward(self) -> float | None: ...


def score(rollouts: Sequence[Judged]) -> Score:
    """Wilson's interval (1927) of the mean; faulted rollouts are counted apart, not as zeros."""
    graded = [(r.env, r.reward) for r in rollouts if r.reward is not None]
    faults = len(rollouts) - len(graded)
    if not graded:
        return Score(mean=None, low=None, high=None, count=0, faults=faults, by_env={})
    number = len(graded)
    mean = sum(reward for _, reward in graded) / number
    centre = (mean + Z95**2 / (2 * number)) / (1 + Z95**2 / number)
    spread = mean * (1 - mean) / number + Z95**2 / (4 * number**2)
    half = Z95 * math.sqrt(max(spread, 0.0)) / (1 + Z95**2 / number)
    by_env: dict[str, list[float]] = {}
    for env, reward in graded:
        by_env.setdefault(env, []).append(reward)
    return Score(
        mean=mean,
        low=max(0.0, centre - half),
        high=min(1.0, centre + half),
        count=number,
        faults=faults,
        by_env={env: sum(values) / len(values) for env, values in sorted(by_env.items())},
    )


def draw_sets(
    sets: Mapping[str, EvalSet], sources: Mapping[str, PoolSource], *, seed: int
) -> dict[str, list[Task]]:
    """The tasks of each set. Raises ConfigError for an unknown environment."""
    drawn: dict[str, list[Task]] = {}
    for name, spec in sets.items():
        if not spec.envs:
            raise ConfigError(f"eval.sets.{name}.envs is empty: name at least one environment")
        rng = random.Random(f"{seed}/eval/{name}")
        chosen = [_locate(name, env, sources) for env in spec.envs]
        tasks = []
        seen: set[str] = set()
        for index in range(spec.count):
            source, env = chosen[index % len(chosen)]
            tasks.append(_draw_new(source, env, rng, spec.level, seen))
        drawn[name] = tasks
    return drawn


def _draw_new(source: PoolSource, env: str, rng: random.Random, level: int, seen: set[str]) -> Task:
    """A configuration not in the set yet; a repeated one where the space is too small for that."""
    task = source.task(env, source.draw(env, rng, Split.EVAL, level), seed=rng.getrandbits(31))
    for _ in range(20):
        if task.id not in seen:
            break
        config = source.draw(env, rng, Split.EVAL, level)
        task = source.task(env, config, seed=rng.getrandbits(31))
    seen.add(task.id)
    return task


def _locate(name: str, env: str, sources: Mapping[str, PoolSource]) -> tuple[PoolSource, str]:
    pool, slash, rest = env.partition("/")
    candidates = [sources[pool]] if slash and pool in sources else list(sources.values())
    wanted = rest if slash else env
    for source in candidates:
        if wanted in source.envs:
            return source, wanted
    known = sorted(f"{s.name}/{e}" for s in sources.values() for e in s.envs)
    raise ConfigError(f"eval.sets.{name}.envs names {env!r}, which is none of {known}")


class Place(NamedTuple):
    """Where an episode belongs; the same before and after training."""

    set: str
    mode: str
    """`sampled` or `greedy`; empty when the group is not one of an evaluation."""
    number: int


def place(group_id: str) -> Place:
    """The place in a group id `eval/<label>/<set>.<mode>/<index>`."""
    if not group_id.startswith("eval/"):
        return Place("", "", 0)
    key, _, index = group_id.split("/", 2)[2].rpartition("/")
    name, _, mode = key.rpartition(".")
    return Place(name, mode, int(index))


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an evaluation is, in episodes."""

    label: str
    """`before` or `after` training."""
    done: int
    total: int


@dataclass(slots=True)
class Evaluation:
    """The grants of some sets under one set of weights, and what came back."""

    sets: Mapping[str, list[Task]]
    label: str
    results: dict[str, dict[str, Rollout]] = field(default_factory=dict)
    _waiting: list[tuple[str, Grant]] = field(default_factory=list)
    _key_of: dict[str, str] = field(default_factory=dict)
    _grants: dict[str, Grant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for (name, tasks), (mode, temperature) in product(self.sets.items(), MODES.items()):
            key = f"{name}.{mode}"
            self.results[key] = {}
            for index, task in enumerate(tasks):
                grant = Grant(
                    group_id=f"eval/{self.label}/{key}/{index}",
                    task=task,
                    members=[0],
                    temperature=temperature,
                    is_eval=True,
                )
                self._waiting.append((key, grant))
        self._grants = {grant.group_id: grant for _, grant in self._waiting}
        self._key_of = {grant.group_id: key for key, grant in self._waiting}
        self._waiting.reverse()

    def next(self, room: int) -> list[Grant]:
        """Up to `room` grants that have not been handed out."""
        return [self._waiting.pop()[1] for _ in range(min(room, len(self._waiting)))]

    def has(self, rollout: Rollout) -> bool:
        """Whether a rollout belongs to it."""
        return rollout.group_id in self._key_of

    def retry(self, rollout: Rollout) -> Grant:
        """The grant that plays a faulted rollout once more."""
        return msgspec.structs.replace(self._grants[rollout.group_id], attempt=rollout.attempt + 1)

    def record(self, rollout: Rollout) -> None:
        """Keep a finished rollout."""
        self.results[self._key_of[rollout.group_id]][rollout.group_id] = rollout

    def config(self, group_id: str) -> Config:
        """The configuration behind one of its grants."""
        return self._grants[group_id].task.config

    @property
    def total(self) -> int:
        return len(self._key_of)

    @property
    def progress(self) -> Progress:
        done = sum(len(results) for results in self.results.values())
        return Progress(label=self.label, done=done, total=self.total)

    @property
    def is_done(self) -> bool:
        return self.progress.done == self.total

    def scores(self) -> dict[str, dict[str, Score]]:
        """`{set: {mode: score}}`."""
        scores: dict[str, dict[str, Score]] = {}
        for key, done in self.results.items():
            name, mode = key.rsplit(".", 1)
            scores.setdefault(name, {})[mode] = score(list(done.values()))
        return scores
