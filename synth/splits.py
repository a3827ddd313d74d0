"""Which environments are for training, validation and the final test: whole clusters at a time.

A cluster is what must not be on two sides: environments of one concept, of one problem, and pairs that are
nearly alike. Which clusters go where depends on the seed and their names alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import msgspec

from configs.load import ConfigError
from configs.synth import SplitRecipe
from synth.records import Made


class Side(StrEnum):
    """What an environment is for."""

    TRAIN = "train"
    """To be trained on."""
    VALIDATION = "validation"
    """To choose between runs."""
    TEST = "test"
    """To be looked at once."""


class SplitError(ValueError):
    """A split that lets the same thing be trained on and measured."""


class Splits(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of environments by side, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    near: tuple[tuple[str, str], ...] = ()
    """Pairs that were kept on one side, since they are nearly alike."""

    def of(self, side: Side) -> tuple[str, ...]:
        """The environments of a side."""
        return getattr(self, side.value)

    def side_of(self, env: str) -> Side:
        """The side that an environment is on; raises KeyError for an unknown one."""
        for side in Side:
            if env in self.of(side):
                return side
        raise KeyError(env)


def split(
    made: Sequence[Made], recipe: SplitRecipe, near: Iterable[tuple[str, str]] = ()
) -> Splits:
    """Divide environments; `near` are pairs of ids to keep together.

    The shares are met as far as clusters allow; training always gets one. Raises ConfigError for shares
    that leave nothing to train on.
    """
    check_shares(recipe)
    pairs = tuple(sorted(tuple(sorted(pair)) for pair in near))
    clusters = _clusters(made, pairs)
    order = sorted(clusters, key=lambda name: _draw(recipe.seed, name))
    sides: dict[Side, list[str]] = {side: [] for side in Side}
    for side, share in ((Side.TEST, recipe.test), (Side.VALIDATION, recipe.validation)):
        for name in _taken(order, clusters, wanted=share * len(made)):
            sides[side] += clusters[name]
            order.remove(name)
    for name in order:
        sides[Side.TRAIN] += clusters[name]
    told = {side.value: tuple(sorted(envs)) for side, envs in sides.items()}
    splits = Splits(**told, near=tuple((a, b) for a, b in pairs))
    check(splits, made)
    return splits


def check_shares(recipe: SplitRecipe) -> None:
    """Raise ConfigError for shares that leave nothing to train on."""
    if recipe.validation + recipe.test >= 1:
        raise ConfigError(
            f"split.validation={recipe.validation:g} and split.test={recipe.test:g} leave nothing to train "
            "on: lower one"
        )


def check(splits: Splits, made: Sequence[Made]) -> None:
    """Raise SplitError unless each environment is on one side, and nothing alike is on two."""
    sides: dict[str, Side] = {}
    for side in Side:
        for env in splits.of(side):
            if env in sides:
                raise SplitError(f"environment {env!r} is for {sides[env]} and for {side}")
            sides[env] = side
    known = {one.draft.env for one in made}
    if sides.keys() != known:
        odd = ", ".join(sorted(sides.keys() ^ known))
        raise SplitError(f"{odd}: in the split or among the environments, not in both")
    for what, word in (("concept", "concept"), ("problem", "problem")):
        seen: dict[str, str] = {}
        for one in made:
            name, env = getattr(one.draft, what), one.draft.env
            if name and sides[seen.setdefault(name, env)] is not sides[env]:
                raise SplitError(
                    f"{word} {name!r} is on two sides: {seen[name]} is for {sides[seen[name]]}, {env} "
                    f"for {sides[env]}"
                )
    for first, second in splits.near:
        if first in sides and second in sides and sides[first] is not sides[second]:
            raise SplitError(
                f"{first} and {second} are nearly alike, and for {sides[first]} and {sides[second]}"
            )


def _clusters(made: Sequence[Made], near: Sequence[tuple[str, ...]]) -> Mapping[str, list[str]]:
    """Environments that stay together, by a name that does not change when others come in."""
    parent = {one.draft.env: one.draft.env for one in made}

    def root(env: str) -> str:
        while parent[env] != env:
            parent[env] = parent[parent[env]]
            env = parent[env]
        return env

    first: dict[tuple[str, str], str] = {}
    for one in made:
        draft = one.draft
        for key in (("concept", draft.concept), ("problem", draft.problem)):
            if key[1]:
                parent[root(draft.env)] = root(first.setdefault(key, draft.env))
    for one, other in near:
        if one in parent and other in parent:
            parent[root(one)] = root(other)
    groups: dict[str, list[Made]] = {}
    for one in made:
        groups.setdefault(root(one.draft.env), []).append(one)
    return {
        min(one.draft.concept or f"problem {one.draft.problem}" for one in group): [
            one.draft.env for one in group
        ]
        for group in groups.values()
    }


def _taken(order: Sequence[str], clusters: Mapping[str, list[str]], *, wanted: float) -> list[str]:
    """Clusters with about `wanted` environments in all; one is left for training."""
    taken: list[str] = []
    size = 0
    for name in order:
        grown = size + len(clusters[name])
        if len(taken) + 1 < len(order) and abs(grown - wanted) < abs(size - wanted):
            taken.append(name)
            size = grown
    return taken


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
