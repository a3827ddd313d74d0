"""Draws variations for the tools of an environment: what a configuration's key `variation` says.

Nothing is proven here: a variant is a task of its own, and is verified like any other. With the plain
oracle's trace at hand, pages are of a size that cuts something, and a budget leaves the oracle room.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from configs.load import ConfigError
from envpool.tools import Schema
from envpool.variation import (
    DONE,
    HOLE,
    Distractor,
    Fail,
    Noise,
    Paginate,
    Permute,
    Rename,
    Variation,
)
from synth import vary_words as words
from synth.records import Move

KINDS = ("rename", "distract", "fail", "noise", "paginate", "budget", "permute")
# Variations of one task at most, so that most of what is learned is still the task.
MAX_KINDS = 3

# Ranges to draw from.
FAIL_RATE = (0.05, 0.3)
NOISE_RATE = (0.3, 1.0)
MAX_IN_A_ROW = 3
MAX_DISTRACTORS = 4
PAGE_CHARS = (80, 400)
# Calls that a budget allows for each that the oracle needs.
SLACK = (1.2, 2.5)
# Characters of the smallest page: less is no page.
MIN_PAGE_CHARS = 4
# What the tool that reads pages is called, or with other words for these.
PAGE_TOOL = "next_page"
# OpenAI's bound for the name of a function.
MAX_NAME_CHARS = 64


def draw_kinds(kinds: Sequence[str], rng: Random) -> list[str]:
    """One to `MAX_KINDS` of `kinds`, or of all where these are none. Raises ConfigError."""
    _check(kinds)
    pick = list(kinds or KINDS)
    return rng.sample(pick, rng.randint(1, min(MAX_KINDS, len(pick))))


def vary(
    tools: list[Schema], rng: Random, kinds: Sequence[str], *, trace: Sequence[Move] = ()
) -> dict[str, Any]:
    """A variation of these kinds for an environment with these tools, as a configuration has it.

    `trace`: what the environment's oracle plays on the plain configuration, `done` last. Without it
    there is no budget, as nobody knows how many calls are needed. Raises ConfigError for an unknown kind.
    """
    _check(kinds)
    draw = _Draw(tools, rng)
    found: dict[str, Any] = {}
    # In this order whatever the caller's: names must not clash, and a budget covers all the rest.
    for kind in ("rename", "permute", "distract", "fail", "noise"):
        if kind in kinds:
            found[kind] = draw.kinds[kind]()
    if "paginate" in kinds:
        found["paginate"] = draw.paginate(trace, found.get("noise"))
    if "budget" in kinds and trace:
        found["budget"] = draw.budget(trace, Variation(**found))
    return msgspec.to_builtins(_without_defaults(Variation(**found)))


def _check(kinds: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"variation.kinds has {kind!r}: choose from {', '.join(KINDS)}")


def _without_defaults(variation: Variation) -> dict[str, Any]:
    """Only what was drawn: a configuration is read by people too."""
    plain = msgspec.to_builtins(variation)
    default = msgspec.to_builtins(Variation())
    return {key: _dense(value) for key, value in plain.items() if value != default[key]}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _dense(part) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_dense(part) for part in value]
    return value


class _Draw:
    """Draws for one environment; names already given are not given again."""

    def __init__(self, tools: list[Schema], rng: Random) -> None:
        self._rng = rng
        functions = [tool["function"] for tool in tools]
        self._functions = [f for f in functions if f["name"] != DONE]
        self._taken = {function["name"] for function in functions}
        self.kinds: dict[str, Callable[[], Any]] = {
            "rename": self.rename,
            "permute": self.permute,
            "distract": self.distract,
            "fail": self.fail,
            "noise": self.noise,
        }

    def rename(self) -> dict[str, Rename]:
        found: dict[str, Rename] = {}
        for function in self._functions:
            name = self._new(function["name"], words.TOOL_WORDS, words.TOOL_PREFIXES, self._taken)
            self._taken.add(name)
            text = self._rng.choice(words.DESCRIPTIONS).replace(HOLE, function["description"])
            found[function["name"]] = Rename(name=name, description=text)
        return found

    def permute(self) -> dict[str, Permute]:
        found: dict[str, Permute] = {}
        for function in self._functions:
            own = list(function["parameters"]["properties"])
            if own:
                taken, names = set(own), {}
                for name in own:
                    names[name] = self._new(
                        name, words.PARAMETER_WORDS, words.PARAMETER_PREFIXES, taken
                    )
                    taken.add(names[name])
                order = self._rng.sample(own, len(own))
                found[function["name"]] = Permute(names=names, order=order)
        return found

    def distract(self) -> list[Distractor]:
        free = [one for one in words.DISTRACTORS if one.name not in self._taken]
        count = min(self._rng.randint(1, MAX_DISTRACTORS), len(free))
        found = [
            msgspec.structs.replace(one, at=self._rng.randint(0, len(self._functions)))
            for one in self._rng.sample(free, count)
        ]
        self._taken |= {one.name for one in found}
        return found

    def fail(self) -> Fail:
        return Fail(
            rate=round(self._rng.uniform(*FAIL_RATE), 2),
            in_a_row=self._rng.randint(1, MAX_IN_A_ROW),
            message=self._rng.choice(words.FAILURES),
            seed=self._rng.getrandbits(31),
        )

    def noise(self) -> Noise:
        count = self._rng.randint(1, len(words.NOISE))
        return Noise(
            templates=self._rng.sample(words.NOISE, count),
            rate=round(self._rng.uniform(*NOISE_RATE), 2),
            seed=self._rng.getrandbits(31),
        )

    def paginate(self, trace: Sequence[Move], noise: Noise | None) -> Paginate:
        tool = self._new(PAGE_TOOL, words.TOOL_WORDS, words.TOOL_PREFIXES, self._taken)
        self._taken.add(tool)
        size = self._rng.randint(*PAGE_CHARS)
        longest = max((len(move.observation) for move in trace[:-1]), default=0)
        if longest:
            longest += _noise_chars(noise)
            # At most some three pages of the longest one.
            size = max(MIN_PAGE_CHARS, min(size, self._rng.randint(longest // 3, longest)))
        return Paginate(size=size, tool=tool)

    def budget(self, trace: Sequence[Move], variation: Variation) -> int:
        """Room for the plain calls with every failure and every page that may come."""
        in_a_row = variation.fail.in_a_row if variation.fail is not None else 0
        calls = 0
        for move in trace[:-1]:
            chars = len(move.observation) + _noise_chars(variation.noise)
            pages = -(-chars // variation.paginate.size) if variation.paginate is not None else 1
            calls += in_a_row + max(1, pages)
        return max(1, round(calls * self._rng.uniform(*SLACK)))

    def _new(
        self,
        name: str,
        synonyms: dict[str, tuple[str, ...]],
        prefixes: Sequence[str],
        taken: set[str],
    ) -> str:
        """Another name, with one of its words replaced, or with a prefix."""
        parts = name.split("_")
        options = [
            "_".join([*parts[:at], synonym, *parts[at + 1 :]])
            for at, part in enumerate(parts)
            for synonym in synonyms.get(part, ())
        ]
        for found in (options, [f"{prefix}_{name}" for prefix in prefixes]):
            free = [one for one in found if one not in taken and len(one) <= MAX_NAME_CHARS]
            if free:
                return self._rng.choice(free)
        return name


def _noise_chars(noise: Noise | None) -> int:
    """Characters that noise adds at most."""
    return max(len(template) - len(HOLE) for template in noise.templates) if noise else 0
