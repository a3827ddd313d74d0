"""Drafts of small environments, good ones, for the verifier to pass and for tests to spoil."""

import textwrap
from random import Random
from typing import Any

import msgspec

from synth.problem import Problem, Test
from synth.records import Draft

_HEAD = """
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from envpool.env import Oracle, ToolEnv, ToolInputError, at, tool


class Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    numbers: Annotated[list[Annotated[int, Meta(ge=0, le=99)]], Meta(min_length=5, max_length=12)]

"""

# Nothing changes: pairs of hidden numbers are compared.
INVERSIONS = (
    _HEAD
    + '''
class Inversions(ToolEnv):
    Config = Given
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(6, 9) + level)]}

    def setup(self, config: Given) -> None:
        self._numbers = config.numbers

    def statement(self) -> str:
        return "How many pairs of positions i < j hold a larger number at i than at j?"

    def reference(self) -> int:
        seen, count = [], 0
        for number in self._numbers:
            count += sum(other > number for other in seen)
            seen.append(number)
        return count

    @tool
    def size(self) -> int:
        """Count the positions, which are 0 and up."""
        return len(self._numbers)

    @tool
    def larger(self, i: int, j: int) -> bool:
        """Say whether the number at i is larger than the number at j.

        Args:
            i: A position.
            j: A position.
        """
        return at(self._numbers, i) > at(self._numbers, j)

    @tool
    def equal(self, i: int, j: int) -> bool:
        """Say whether two numbers are equal.

        Args:
            i: A position.
            j: A position.
        """
        return at(self._numbers, i) == at(self._numbers, j)

    def oracle(self) -> Oracle:
        size = int((yield "size", {}))
        count = 0
        for j in range(size):
            for i in range(j):
                # Asked twice, as a forgetful agent would.
                yield "larger", {"i": i, "j": j}
                count += (yield "larger", {"i": i, "j": j}) == "true"
        yield "done", {"answer": count}
'''
)
INVERSIONS_SOLUTION = """
def solve(numbers):
    return sum(a > b for j, b in enumerate(numbers) for a in numbers[:j])
"""

# A cursor moves over hidden numbers, and a register keeps one of them.
RISES = (
    _HEAD
    + '''
class Rises(ToolEnv):
    Config = Given
    Answer = int

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(6, 9) + level)]}

    def setup(self, config: Given) -> None:
        self._numbers = config.numbers
        self._place = 0
        self._kept = 0

    def statement(self) -> str:
        return "Sum up the numbers that are larger than the one before them, the first one left out."

    def reference(self) -> int:
        pairs = zip(self._numbers, self._numbers[1:])
        return sum(b for a, b in pairs if b > a)

    @tool
    def read(self) -> int:
        """Read the number under the cursor."""
        return self._numbers[self._place]

    @tool
    def keep(self) -> str:
        """Keep the number under the cursor in the register."""
        self._kept = self._numbers[self._place]
        return "kept"

    @tool
    def compare(self) -> str:
        """Compare the number under the cursor with the register: larger or not."""
        return "larger" if self._numbers[self._place] > self._kept else "not larger"

    @tool
    def forward(self) -> str:
        """Move the cursor to the next number, if there is one."""
        if self._place + 1 == len(self._numbers):
            raise ToolInputError("this is the last number")
        self._place += 1
        return "moved"

    def oracle(self) -> Oracle:
        total = 0
        yield "keep", {}
        while (yield "forward", {}) == "moved":
            if (yield "compare", {}) == "larger":
                total += int((yield "read", {}))
            yield "keep", {}
        yield "done", {"answer": total}
'''
)
RISES_SOLUTION = """
def solve(numbers):
    total = 0
    for before, after in zip(numbers, numbers[1:]):
        if after > before:
            total += after
    return total
"""

# Many calls change something, and its answer is a list.
LADDER = (
    _HEAD
    + '''
class Ladder(ToolEnv):
    Config = Given
    Answer = list[int]

    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(5, 7) + level)]}

    def setup(self, config: Given) -> None:
        self._numbers = list(config.numbers)
        self._given = config.numbers

    def statement(self) -> str:
        return "List the positions, from 0, at which the numbers in order of size lie; of equal ones the first."

    def reference(self) -> list[int]:
        return sorted(range(len(self._given)), key=lambda i: (self._given[i], i))

    @tool
    def count(self) -> int:
        """Count the positions."""
        return len(self._numbers)

    @tool
    def less(self, i: int, j: int) -> bool:
        """Say whether the number now at i is less than that now at j.

        Args:
            i: A position.
            j: A position.
        """
        return at(self._numbers, i) < at(self._numbers, j)

    @tool
    def swap(self, i: int, j: int) -> str:
        """Swap the numbers at two positions.

        Args:
            i: A position.
            j: A position.
        """
        first, second = at(self._numbers, i), at(self._numbers, j)
        self._numbers[i], self._numbers[j] = second, first
        return "swapped"

    def oracle(self) -> Oracle:
        count = int((yield "count", {}))
        order = list(range(count))
        for end in range(count - 1, 0, -1):
            for i in range(end):
                if (yield "less", {"i": i + 1, "j": i}) == "true":
                    yield "swap", {"i": i, "j": i + 1}
                    order[i], order[i + 1] = order[i + 1], order[i]
        yield "done", {"answer": order}
'''
)
LADDER_SOLUTION = """
def solve(numbers):
    return [i for _, i in sorted((n, i) for i, n in enumerate(numbers))]
"""

SOURCES = {
    "inversions": (INVERSIONS, INVERSIONS_SOLUTION),
    "rises": (RISES, RISES_SOLUTION),
    "ladder": (LADDER, LADDER_SOLUTION),
}


def draft(name: str, *spoils: tuple[str, str], count: int = 10, **fields: Any) -> Draft:
    """A good draft, with texts of its source replaced, and fields."""
    source, solution = SOURCES[name]
    for text, other in spoils:
        assert text in source, f"the source has no {text!r}"
        source = source.replace(text, other)
    rng = Random(name)
    configs = [
        {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(6, 8))]} for _ in range(count)
    ]
    known = Draft(
        env=name,
        problem=f"{name}_problem",
        concept=name,
        origin="extract",
        source=textwrap.dedent(source),
        configs=tuple(configs),
        solutions=(solution,),
    )
    return msgspec.structs.replace(known, **fields)


def problem(name: str, **fields: Any) -> Problem:
    """What the draft was made from, with a test."""
    solution = SOURCES[name][1]
    answers = {"inversions": 1, "rises": 7, "ladder": [1, 0, 2, 3, 4]}
    test = Test(
        args={"numbers": [2, 1, 2, 2, 5] if name != "ladder" else [2, 1, 3, 4, 5]},
        answer=answers[name],
    )
    known = Problem(id=f"{name}_problem", statement="...", solutions=(solution,), tests=(test,))
    return msgspec.structs.replace(known, **fields)
