"""The hidden list of small numbers that several environments share, and its sizes by level."""

from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

# The tiny policy's tokenizer has one token for each number below this.
MAX_NUMBER = 99

Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]


class Numbers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A non-empty list of numbers 0..99."""

    numbers: Annotated[list[Number], Meta(min_length=1)]


def draw_length(rng: Random, level: int) -> int:
    """2-5 at level 0, 5-8 at level 1, three more for each further level."""
    return rng.randint(2, 5) + 3 * level


def draw_numbers(rng: Random, level: int) -> list[int]:
    return [rng.randint(0, MAX_NUMBER) for _ in range(draw_length(rng, level))]
