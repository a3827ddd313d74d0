"""Inputs for a problem that has no generator: like those of its tests, and valid as far as these show.

What all examples have in common is kept: ranges, lengths, order, no repeats, equal lengths, rectangular
rows, and numbers that never pass a list's length. What a statement demands beyond that nothing here knows;
inputs that the solution fails on are left out later.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from random import Random
from typing import Any

import msgspec

from envpool.task import Config

# Lists may grow to this many times the longest example.
GROWTH = 1.5
# Of which a new value is made in place of an old one, per draw.
_KEEP = 0.15


class _Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers within a range."""

    low: float
    high: float
    is_whole: bool

    def draw(self, rng: Random, length: int | None = None) -> Any:
        if self.is_whole:
            return rng.randint(int(self.low), int(self.high))
        # As many digits as tell a thousand numbers of the range apart.
        span = self.high - self.low
        digits = 3 - min(0, math.floor(math.log10(span))) if span else 3
        return min(max(round(rng.uniform(self.low, self.high), digits), self.low), self.high)


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Values seen, and no others."""

    values: tuple[Any, ...]

    def draw(self, rng: Random, length: int | None = None) -> Any:
        return rng.choice(self.values)


class _Text(msgspec.Struct, frozen=True, kw_only=True):
    """Text of the characters seen."""

    characters: str
    lengths: tuple[int, int]

    def draw(self, rng: Random, length: int | None = None) -> str:
        size = rng.randint(*self.lengths) if length is None else length
        return "".join(rng.choice(self.characters) for _ in range(size))


class _List(msgspec.Struct, frozen=True, kw_only=True):
    """Lists of items of one kind."""

    item: "Kind"
    lengths: tuple[int, int]
    is_sorted: bool
    is_distinct: bool
    is_rectangular: bool

    def draw(self, rng: Random, length: int | None = None) -> list[Any]:
        size = rng.randint(*self.lengths) if length is None else length
        width = None
        if self.is_rectangular and isinstance(self.item, _List | _Text):
            width = rng.randint(*self.item.lengths)
        items: list[Any] = []
        seen: set[bytes] = set()
        for _ in range(20 * size):
            if len(items) == size:
                break
            item = self.item.draw(rng, width)
            if self.is_distinct:
                text = _text_of(item)
                if text in seen:
                    continue
                seen.add(text)
            items.append(item)
        return sorted(items) if self.is_sorted else items


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Objects with the keys of an example."""

    keys: tuple[tuple[str, ...], ...]
    item: "Kind"

    def draw(self, rng: Random, length: int | None = None) -> dict[str, Any]:
        return {key: self.item.draw(rng) for key in rng.choice(self.keys)}


Kind = _Numbers | _Choice | _Text | _List | _Table


def inputs(examples: Sequence[Config], count: int, seed: int) -> list[Config]:
    """`count` sets of arguments at most, the examples first; none twice."""
    found: dict[bytes, Config] = {}
    encode = msgspec.json.Encoder(order="sorted").encode
    for example in examples:
        found[encode(example)] = dict(example)
    if not examples:
        return []
    # Arguments with a default need not be in all of them.
    names = dict.fromkeys(name for one in examples for name in one)
    kinds = {name: _kind([one[name] for one in examples if name in one]) for name in names}
    equal = _equal_lengths(examples)
    bounded = _bounded(examples)
    rng = Random(f"inputs/{seed}")
    for _ in range(4 * count):
        if len(found) >= count:
            break
        drawn = _draw(rng.choice(examples), kinds, equal, bounded, rng)
        if all(len(drawn[later]) == len(drawn[first]) for later, first in equal.items()):
            found.setdefault(encode(drawn), drawn)
    return list(found.values())[:count]


def _draw(
    base: Config,
    kinds: Mapping[str, Kind],
    equal: Mapping[str, str],
    bounded: Mapping[str, str],
    rng: Random,
) -> Config:
    drawn: Config = {}
    for name, kind in kinds.items():
        if name not in base:
            continue
        if name in equal:
            drawn[name] = kind.draw(rng, len(drawn[equal[name]]))
        elif rng.random() < _KEEP and not any(other == name for other in equal.values()):
            drawn[name] = base[name]
        else:
            drawn[name] = kind.draw(rng)
    for name, of in bounded.items():
        if drawn[name] > len(drawn[of]):
            drawn[name] = rng.randint(min(1, len(drawn[of])), len(drawn[of]))
    return drawn


def _kind(values: Sequence[Any]) -> Kind:
    """What values of one place have in common."""
    first = values[0]
    if isinstance(first, bool) or first is None:
        return _Choice(values=(True, False) if isinstance(first, bool) else (None,))
    if all(isinstance(value, int | float) for value in values):
        is_whole = all(isinstance(value, int) for value in values)
        return _Numbers(low=min(values), high=max(values), is_whole=is_whole)
    if all(isinstance(value, str) for value in values):
        return _texts(values)
    if all(isinstance(value, list) for value in values):
        return _lists(values)
    if all(isinstance(value, dict) for value in values):
        inner = [item for value in values for item in value.values()]
        keys = tuple(dict.fromkeys(tuple(value) for value in values))
        return _Table(keys=keys, item=_kind(inner) if inner else _Choice(values=(0,)))
    return _Choice(values=tuple(values))


def _texts(values: Sequence[str]) -> Kind:
    """Few different words are a choice; others are made of their characters."""
    different = set(values)
    if len(different) <= len(values) // 2:
        return _Choice(values=tuple(sorted(different)))
    characters = "".join(sorted({one for value in values for one in value}))
    lengths = [len(value) for value in values]
    if not characters:
        return _Choice(values=("",))
    return _Text(characters=characters, lengths=(min(lengths), max(lengths)))


def _lists(values: Sequence[list[Any]]) -> Kind:
    items = [item for value in values for item in value]
    lengths = [len(value) for value in values]
    long = [value for value in values if len(value) > 1]
    item = _kind(items) if items else _Choice(values=(0,))
    is_text = isinstance(item, _Text | _Choice) and bool(items) and isinstance(items[0], str)
    is_sized = isinstance(item, _List) or is_text
    longest = max(lengths)
    grown = longest if len(set(lengths)) == 1 else int(longest * GROWTH)
    return _List(
        item=item,
        lengths=(min(lengths), grown),
        is_sorted=bool(long) and all(_is_sorted(value) for value in long),
        is_distinct=bool(long) and all(_is_distinct(value) for value in long),
        is_rectangular=is_sized
        and all(len({len(row) for row in value}) <= 1 for value in values if value),
    )


def _is_sorted(value: list[Any]) -> bool:
    try:
        return all(a <= b for a, b in pairwise(value))
    except TypeError:
        return False


def _is_distinct(value: list[Any]) -> bool:
    return len({_text_of(item) for item in value}) == len(value)


def _text_of(item: Any) -> bytes:
    """What two items have in common if they are the same."""
    return msgspec.json.encode(item, order="sorted")


def _all_are(kind: Any, name: str, examples: Sequence[Config]) -> bool:
    """Whether all examples have an argument, and of that kind."""
    return all(name in one and isinstance(one[name], kind) for one in examples)


def _equal_lengths(examples: Sequence[Config]) -> dict[str, str]:
    """Lists that were always as long as an earlier one, by the later one's name."""
    lists = [name for name in examples[0] if _all_are(list | str, name, examples)]
    found: dict[str, str] = {}
    for first, later in combinations(lists, 2):
        is_equal = all(len(one[first]) == len(one[later]) for one in examples)
        varied = len({len(one[first]) for one in examples}) > 1
        if is_equal and varied and first not in found:
            found.setdefault(later, first)
    return found


def _bounded(examples: Sequence[Config]) -> dict[str, str]:
    """Numbers that never passed a list's length, by name."""
    found: dict[str, str] = {}
    for name in examples[0]:
        if not _all_are(int, name, examples) or isinstance(examples[0][name], bool):
            continue
        for of in examples[0]:
            if _all_are(list | str, of, examples) and all(
                0 <= one[name] <= len(one[of]) for one in examples
            ):
                found.setdefault(name, of)
    return found
