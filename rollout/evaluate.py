"""Evaluation sets: drawn once, played with fixed weights, never trained on.

Of environments that a run never trains on any configuration is drawn, of others the evaluation split's.

The same tasks are played before and after, sampled and greedy, so that the differences are paired.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from configs.load import ConfigError
from configs.schema import EvalSet
from envpool.source import Source
from envpool.task import PoolKey, Split, Task
from rollout.files import RolloutRow
from rollout.scores import Score, score
from rollout.types import Grant, Rollout
from rollout.untouched import Untouched

# Configurations of a pool that no set is about: intervals of about +-.1.
DEFAULT_COUNT = 100

# Draws for a configuration that the set does not have, where nobody knows how many there are.
MAX_REPEATS = 20

MODES: Mapping[str, float] = {"sampled": 1.0, "greedy": 0.0}


def draw_sets(
    sets: Mapping[str, EvalSet],
    sources: Mapping[str, Source],
    *,
    seed: int,
    untouched: Untouched = (),
) -> dict[str, list[Task]]:
    """The tasks of each set, of the `untouched` from all configurations.

    Raises ConfigError for an unknown environment, and for one without any to draw.
    """
    drawn: dict[str, list[Task]] = {}
    for name, spec in sets.items():
        if not spec.envs:
            raise ConfigError(f"eval.sets.{name}.envs is empty: name at least one environment")
        rng = random.Random(f"{seed}/eval/{name}")
        located = [locate(name, env, sources) for env in spec.envs]
        chosen = {
            (source.name, env): _Chosen.of(source, env, spec.level, untouched)
            for source, env in located
        }
        turns = [chosen[source.name, env] for source, env in located]
        drawn[name] = [turns[index % len(turns)].draw(rng) for index in range(spec.count)]
    return drawn


def default_sets(
    sources: Mapping[str, Source],
    drawn: Mapping[str, list[Task]],
    *,
    seed: int,
    untouched: Untouched = (),
) -> dict[str, list[Task]]:
    """A set of all environments, named like the pool, for each pool that `drawn` has no task of.

    About `DEFAULT_COUNT` configurations, as many of each environment. Raises ConfigError where an
    environment has none for evaluation.
    """
    covered = {task.pool for tasks in drawn.values() for task in tasks}
    specs: dict[str, EvalSet] = {}
    for name, source in sources.items():
        if name not in covered:
            envs = sorted(source.envs)
            each = math.ceil(DEFAULT_COUNT / len(envs))
            key = name if name not in drawn else f"all of {name}"
            spec = EvalSet(envs=[f"{name}/{env}" for env in envs], count=each * len(envs))
            specs[key] = spec
    try:
        return draw_sets(specs, sources, seed=seed, untouched=untouched)
    except ConfigError as error:
        raise ConfigError(
            f"{error}; or choose what to evaluate: eval.sets.NAME.envs='[\"pool/env\", ...]'"
        ) from error


@dataclass(slots=True, kw_only=True)
class _Chosen:
    """An environment that a set draws from."""

    source: Source
    env: str
    level: int
    split: Split | None
    number: int
    """Configurations that there are; 0 where nobody knows."""
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: Source, env: str, level: int, untouched: Untouched) -> "_Chosen":
        """Raises ConfigError where none of its configurations may be drawn."""
        split = None if (source.name, env) in untouched else Split.EVAL
        number = source.count(env, split, level)
        if number == 0 and (others := source.count(env, None, level)):
            raise ConfigError(
                f"env {env!r} of pool {source.name} has {others} configurations of level {level}, and "
                "none of them is of the evaluation split: leave it out, or give it more (those of "
                "split='eval' are evaluated on all, unless a pool with an env of that id is trained on)"
            )
        return cls(source=source, env=env, level=level, split=split, number=number or 0)

    def draw(self, rng: random.Random) -> Task:
        """A configuration not in the set yet; a repeated one where the space is too small for that."""
        task = self._draw(rng)
        repeats = 0
        while task.id in self.seen and (repeats < MAX_REPEATS or len(self.seen) < self.number):
            task = self._draw(rng)
            repeats += 1
        self.seen.add(task.id)
        return task

    def _draw(self, rng: random.Random) -> Task:
        config = self.source.draw(self.env, rng, self.split, self.level)
        return self.source.task(self.env, config, seed=rng.getrandbits(31))


def locate(name: str, env: str, sources: Mapping[str, Source]) -> tuple[Source, str]:
    """The pool of an environment that set `name` names, and its id there; raises ConfigError."""
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
    sample: int = 0
    """Of its task."""


def place(group_id: str, member: int = 0) -> Place:
    """The place of a member in a group id `eval/<label>/<set>.<mode>/<index>`."""
    if not group_id.startswith("eval/"):
        return Place("", "", 0)
    key, _, index = group_id.split("/", 2)[2].rpartition("/")
    name, _, mode = key.rpartition(".")
    return Place(name, mode, int(index), member)


def doing(label: str, *, steps: int) -> str:
    """What is said of an evaluation while it plays, in a run of so many steps."""
    return f"evaluating {label} training" if steps else "evaluating"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far an evaluation is, in episodes."""

    label: str
    """`before` or `after` training."""
    done: int
    total: int


def versions_of(sets: Mapping[str, list[Task]]) -> set[PoolKey]:
    """The versions of pools that evaluation sets are about."""
    return {task.pool_key for tasks in sets.values() for task in tasks}


@dataclass(slots=True)
class Evaluation:
    """The grants of some sets under one set of weights, and what came back.

    A task is played `samples` times when sampled, by as many members of one group, each of which has
    a random stream of its own; greedy once, since every time would be the same.
    """

    sets: Mapping[str, list[Task]]
    label: str
    samples: int = 1
    results: dict[str, dict[tuple[str, int], Rollout]] = field(default_factory=dict)
    _waiting: list[Grant] = field(default_factory=list)
    _key_of: dict[str, str] = field(default_factory=dict)
    _grants: dict[tuple[str, int], Grant] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, tasks in self.sets.items():
            for mode, temperature in MODES.items():
                key = f"{name}.{mode}"
                self.results[key] = {}
                for index, task in enumerate(tasks):
                    group_id = f"eval/{self.label}/{key}/{index}"
                    self._key_of[group_id] = key
                    for member in range(self.samples_of(mode)):
                        self._grants[group_id, member] = Grant(
                            group_id=group_id,
                            task=task,
                            members=[member],
                            temperature=temperature,
                            is_eval=True,
                        )
        self._waiting = list(reversed(self._grants.values()))

    @property
    def versions(self) -> set[PoolKey]:
        """The versions of pools that it plays."""
        return versions_of(self.sets)

    def samples_of(self, mode: str) -> int:
        """Episodes of each task in a mode."""
        return self.samples if MODES[mode] > 0 else 1

    def next(self, room: int) -> list[Grant]:
        """Up to `room` grants of one member each that have not been handed out."""
        return [self._waiting.pop() for _ in range(min(room, len(self._waiting)))]

    def has(self, rollout: Rollout) -> bool:
        """Whether a rollout belongs to it."""
        return (rollout.group_id, rollout.member) in self._grants

    def retry(self, rollout: Rollout) -> Grant:
        """The grant that plays a faulted rollout once more."""
        grant = self._grants[rollout.group_id, rollout.member]
        return msgspec.structs.replace(grant, attempt=rollout.attempt + 1)

    def record(self, rollout: Rollout) -> None:
        """Keep a finished rollout."""
        key = self._key_of[rollout.group_id]
        self.results[key][rollout.group_id, rollout.member] = rollout

    def row(self, rollout: Rollout) -> RolloutRow:
        """The line that is written for one of its rollouts."""
        grant = self._grants[rollout.group_id, rollout.member]
        samples = self.samples_of(place(rollout.group_id).mode)
        return RolloutRow.of(rollout, config=grant.task.config, group_size=samples)

    @property
    def total(self) -> int:
        return len(self._grants)

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
            found = score(list(done.values()), samples=self.samples_of(mode))
            scores.setdefault(name, {})[mode] = found
        return scores
