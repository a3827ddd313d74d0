"""What a configuration's reserved key `variation` may say: a task made harder to play, not to judge.

    {"numbers": [3, 1], "variation": {"rename": {"get": {"name": "read_item"}}, "budget": 12}}

All of it is data of the task: `envpool.varied` plays by it, `envpool.varied_oracle` wins by it. What is
drawn by chance is seeded here and nowhere else, so that the same calls get the same answers again.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from configs.load import ConfigError

Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
# Of tools and parameters: what every endpoint allows.
Name = Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Text = Annotated[str, Meta(min_length=1)]

# Stands for the observation in a template of noise.
HOLE = "{}"
# Fixed characters of such a template at least: fewer are easily part of an observation.
MIN_NOISE_CHARS = 4
# The one tool that is never varied.
DONE = "done"

_FOOTER = re.compile(r"\n\[page (\d+) of (\d+)\]$")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a variation; unknown keys are refused."""


class Rename(_Section, frozen=True, kw_only=True):
    """Another name or description of a tool; what is left out stays."""

    name: Name | None = None
    description: Text | None = None


class Permute(_Section, frozen=True, kw_only=True):
    """Other names and another order of a tool's parameters."""

    names: dict[str, Name] = {}
    """New name of a parameter by its own; those left out keep theirs."""
    order: list[str] = []
    """All parameters by their own names, in the order to be shown; empty: as they are."""


class Parameter(_Section, frozen=True, kw_only=True):
    """One of a distractor's parameters, all of which must be given."""

    type: Literal["string", "integer", "number", "boolean"]
    description: str


class Distractor(_Section, frozen=True, kw_only=True):
    """A tool that does nothing: no call of it touches the environment."""

    name: Name
    description: Text
    parameters: dict[Name, Parameter] = {}
    replies: Annotated[list[str], Meta(min_length=1)]
    """What its calls are answered, in turn and over again."""
    at: Whole = 0
    """Its place among the tools, from 0; never behind `done`."""


class Fail(_Section, frozen=True, kw_only=True):
    """Calls that fail for the moment: nothing happens, and the same call may pass the next time."""

    rate: Fraction
    """Chance of each call."""
    in_a_row: Count = 2
    """Failures one after the other at most, whatever is called: the next call passes."""
    tools: list[str] = []
    """Which tools, by their own names; empty: all but `done`."""
    message: Text = "Error: busy, try again"
    """What a failed call is answered, which no tool answers otherwise."""
    seed: int = 0


class Noise(_Section, frozen=True, kw_only=True):
    """Harmless text around observations."""

    templates: Annotated[list[str], Meta(min_length=1)]
    """Each with one `{}`, where the observation goes; the rest of it occurs in no observation."""
    rate: Fraction = 1.0
    """Chance of each observation to get one."""
    seed: int = 0

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(HOLE) != 1:
                raise ValueError(
                    f"noise.templates has {template!r}: write {HOLE} in it once, for the observation"
                )
            if len(template) - len(HOLE) < MIN_NOISE_CHARS:
                raise ValueError(
                    f"noise.templates has {template!r}: write at least {MIN_NOISE_CHARS} characters "
                    "around the observation, so that they can be told from it"
                )


class Paginate(_Section, frozen=True, kw_only=True):
    """Longer observations come in pages, which a tool of its own reads."""

    size: Count
    """Characters of a page."""
    tool: Name = "next_page"
    """Name of the tool, which takes the number of a page from 1."""


class Variation(_Section, frozen=True, kw_only=True):
    """How a task is varied. Tools and parameters are named as the environment names them."""

    rename: dict[str, Rename] = {}
    permute: dict[str, Permute] = {}
    distract: list[Distractor] = []
    fail: Fail | None = None
    noise: Noise | None = None
    paginate: Paginate | None = None
    budget: Count | None = None
    """Calls after which all but `done` are refused. The task says how many there are."""


def read_variation(value: Any, env: str) -> Variation:
    """The variation of a task of `env`; raises ConfigError for what is none."""
    try:
        return msgspec.convert(value, Variation)
    except msgspec.ValidationError as error:
        known = ", ".join(Variation.__struct_fields__)
        raise ConfigError(
            f"variation of {env}: {error}: correct it, or leave it out (there are {known})"
        ) from error


def page_text(text: str, page: int, size: int) -> str:
    """One page of a long observation, from 1, and which one it is."""
    return f"{text[(page - 1) * size : page * size]}\n[page {page} of {num_pages(text, size)}]"


def num_pages(text: str, size: int) -> int:
    return -(-len(text) // size)


def read_page(observation: str) -> tuple[str, int]:
    """The text of a page without its footer, and how many there are; 1 for what is no page."""
    footer = _FOOTER.search(observation)
    return (observation[: footer.start()], int(footer[2])) if footer else (observation, 1)


def without_noise(observation: str, noise: Noise) -> str:
    """What a template was put around, or the observation itself where it looks like none of them."""
    # The longest first: one may be part of another.
    for template in sorted(noise.templates, key=len, reverse=True):
        before, _, after = template.partition(HOLE)
        fits = len(observation) >= len(before) + len(after)
        if fits and observation.startswith(before) and observation.endswith(after):
            return observation[len(before) : len(observation) - len(after)]
    return observation
