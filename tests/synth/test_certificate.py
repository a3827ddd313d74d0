"""Least covers against brute force, and certificates of environments whose truth is known."""

import itertools
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.certificate import certify, too_short
from synth.court import Court, JobFault
from synth.inside.hitting import Bounds, least_cover, maximal
from synth.records import Certificate, Move

needs_sandbox = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

SETS = st.lists(st.integers(min_value=1, max_value=2**8 - 1), min_size=1, max_size=9)


def union(sets: Sequence[int]) -> int:
    found = 0
    for one in sets:
        found |= one
    return found


def by_trying(sets: Sequence[int], universe: int) -> int:
    """The size of the least cover."""
    for size in range(len(sets) + 1):
        for chosen in itertools.combinations(sets, size):
            if union(chosen) & universe == universe:
                return size
    raise AssertionError("no cover")


@given(SETS)
def test_the_least_cover_is_least(sets: list[int]) -> None:
    universe = union(sets)
    truth = by_trying(sets, universe)
    assert least_cover(sets, universe) == Bounds(truth, truth)


@given(SETS, st.integers(min_value=0, max_value=9))
def test_with_a_goal_the_bounds_decide_about_it(sets: list[int], goal: int) -> None:
    universe = union(sets)
    truth = by_trying(sets, universe)
    low, high = least_cover(sets, universe, goal=goal)
    assert low <= truth <= high
    assert low > goal or high <= goal


@given(SETS)
def test_bounds_hold_where_the_search_is_cut(sets: list[int]) -> None:
    universe = union(sets)
    low, high = least_cover(sets, universe, max_nodes=0)
    assert low <= by_trying(sets, universe) <= high


def test_weights_prove_what_no_single_set_shows() -> None:
    """Pairs of seven: each covers two, and three of them cannot do."""
    pairs = [1 << i | 1 << j for i, j in itertools.combinations(range(7), 2)]
    assert least_cover(pairs, 2**7 - 1, max_nodes=0).low == 4


def test_what_lies_in_another_set_is_of_no_use() -> None:
    assert maximal([0b1, 0b11, 0b11, 0b100, 0]) == [0b11, 0b100]


def test_elements_of_no_set_are_an_error() -> None:
    with pytest.raises(ValueError, match="lie in no set"):
        least_cover([0b1], 0b11)


# -- environments ----------------------------------------------------------------------------------

SOURCE = """
import msgspec
from typing import Annotated
from msgspec import Meta
from envpool.env import Oracle, ToolEnv, ToolInputError, at, tool

class Hidden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    which: Annotated[int, Meta(ge=0, le={last})]

class Table(ToolEnv):
    Config = Hidden
    def setup(self, config: Hidden) -> None:
        self._which = config.which
        self._cells = [int(i + 1 == config.which) for i in range({last})]
        self._place = 0
    def statement(self) -> str:
        return "Which?"
    def reference(self) -> int:
        return self._which
{tools}
"""
GET = '''
    @tool
    def get(self, i: int) -> int:
        """Get.

        Args:
            i: Where.
        """
        return at(self._cells, i)
'''
SOME = '''
    @tool
    def some(self, low: int, high: int) -> bool:
        """Whether there is one.

        Args:
            low: From here.
            high: To here.
        """
        return any(self._cells[max(0, low):max(0, high)])
'''
CURSOR = '''
    @tool
    def look(self) -> int:
        """Look."""
        return self._cells[self._place]
    @tool
    def move(self) -> str:
        """Move."""
        self._place = min(self._place + 1, len(self._cells) - 1)
        return "moved"
'''
CHARGED = '''
    @tool
    def charge(self) -> str:
        """Charge."""
        self._place += 1
        return "charged"
    @tool
    def reveal(self) -> int:
        """Reveal."""
        if self._place < {charges}:
            raise ToolInputError("not charged")
        return self._which
'''
ADDED = '''
    @tool
    def add(self, i: int, j: int) -> str:
        """Add.

        Args:
            i: One.
            j: Another.
        """
        self._cells = [*self._cells, i * 100 + j]
        return "added"
'''


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(VerifyRecipe(step_timeout_s=5.0)) as court:
        yield court


async def certified(
    court: Court,
    tools: str,
    calls: Sequence[tuple[str, dict[str, Any]]],
    *,
    last: int = 5,
    which: int = 0,
    seconds: float = 5.0,
    head: str = "",
) -> Certificate:
    """The certificate of a table's task, with the calls of an oracle."""
    source = head + SOURCE.format(last=last, tools=tools)
    recipe = VerifyRecipe(alternatives=32, certificate_s=seconds)
    async with court.room({"draft.py": source}, longest_s=30.0) as room, room.desk() as desk:
        # What it showed is of no matter but for the values in it.
        trace = [Move(name=name, arguments=arguments, observation="0") for name, arguments in calls]
        others = [{"which": i} for i in range(last + 1)]
        return await certify(desk, {"which": which}, others, trace, level=0, recipe=recipe)


ALL = [("get", {"i": i}) for i in range(5)]


@needs_sandbox
async def test_one_cell_at_a_time_takes_as_many_calls_as_cells(court: Court) -> None:
    found = await certified(court, GET, ALL)
    assert found == Certificate(calls=5, is_exact=True, alternatives=5)


@needs_sandbox
async def test_a_call_that_shows_all_is_a_certificate_of_one(court: Court) -> None:
    shortcut = GET + SOME
    found = await certified(court, shortcut, ALL)
    assert (found.calls, found.is_exact) == (1, True)
    # Where the true one differs from each in a cell of its own, that cell is enough.
    found = await certified(court, GET, ALL, which=3)
    assert (found.calls, found.is_exact) == (1, True)


@needs_sandbox
async def test_a_cursor_needs_a_look_at_each_place(court: Court) -> None:
    trace = [call for _ in range(5) for call in (("look", {}), ("move", {}))]
    found = await certified(court, CURSOR, trace)
    assert 5 <= found.calls <= 9
    assert not found.is_sampled


@needs_sandbox
@pytest.mark.parametrize("charges", [0, 1, 3])
async def test_a_solver_behind_changes_of_state_is_found(court: Court, charges: int) -> None:
    """However many calls the oracle makes."""
    trace = [*ALL, *[("charge", {})] * charges, ("reveal", {})]
    found = await certified(court, GET + CHARGED.format(charges=charges), trace)
    assert (found.calls, found.is_exact) == (charges + 1, True)


@needs_sandbox
async def test_alternatives_that_the_oracle_does_not_tell_apart_are_left_out(court: Court) -> None:
    found = await certified(court, GET, ALL[:3])
    assert (found.calls, found.alternatives) == (3, 3)


@needs_sandbox
async def test_without_alternatives_nothing_is_certified(court: Court) -> None:
    found = await certified(court, GET, [])
    assert (found.calls, found.alternatives, found.is_exact) == (0, 0, False)


@needs_sandbox
async def test_where_states_never_end_the_bound_is_for_some(court: Court) -> None:
    trace = [*ALL, ("add", {"i": 1, "j": 2}), ("add", {"i": 2, "j": 2})]
    found = await certified(court, GET + ADDED, trace, seconds=0.2)
    assert found.is_sampled and not found.is_exact
    assert found.calls == 5


@needs_sandbox
async def test_state_that_cannot_be_copied_is_a_fault(court: Court) -> None:
    tools = GET.replace("return at", "self._f = lambda: 0\n        return at")
    with pytest.raises(JobFault, match="cannot be copied"):
        await certified(court, tools, ALL)


MACHINE = '''
import msgspec
from typing import Annotated
from msgspec import Meta
from envpool.env import ToolEnv, tool

NEXT = {following}
SHOWN = {shown}

class Hidden(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    which: Annotated[int, Meta(ge=0, lt={count})]

class Machine(ToolEnv):
    Config = Hidden
    def setup(self, config: Hidden) -> None:
        self._which, self._state = config.which, 0
    def statement(self) -> str:
        return "Which?"
    def reference(self) -> int:
        return self._which
    @tool
    def act(self, do: Annotated[int, Meta(ge=0, lt={actions})]) -> int:
        """Act.

        Args:
            do: What.
        """
        shown = SHOWN[self._which][self._state][do]
        self._state = NEXT[self._state][do]
        return shown
'''


def machine(rng: Random) -> tuple[str, list[int], int]:
    """A source, the shortest actions that tell all apart from the first, and how many alternatives."""
    states, actions, count = rng.randint(1, 4), rng.randint(1, 3), rng.randint(3, 7)
    following = [[rng.randrange(states) for _ in range(actions)] for _ in range(states)]
    shown = [
        [[int(rng.random() < 0.35) for _ in range(actions)] for _ in range(states)]
        for _ in range(count)
    ]
    source = MACHINE.format(following=following, shown=shown, count=count, actions=actions)
    reached = {(0, 0): list[int]()}
    frontier = [(0, 0)]
    everything = 2 ** (count - 1) - 1
    while frontier:
        ahead = []
        for state, seen in frontier:
            for do in range(actions):
                told = sum(
                    1 << i
                    for i in range(count - 1)
                    if shown[i + 1][state][do] != shown[0][state][do]
                )
                place = (following[state][do], seen | told)
                if place not in reached:
                    reached[place] = [*reached[state, seen], do]
                    ahead.append(place)
        frontier = ahead
    best = [path for (_, seen), path in reached.items() if seen == everything]
    return source, min(best, key=len, default=[]), count - 1


@needs_sandbox
async def test_bounds_hold_for_machines_of_any_kind(court: Court) -> None:
    rng = Random(5)
    tried = exact = 0
    recipe = VerifyRecipe(alternatives=16)
    while tried < 12:
        source, path, alternatives = machine(rng)
        if not path:
            continue
        tried += 1
        async with court.room({"draft.py": source}, longest_s=30.0) as room, room.desk() as desk:
            trace = [Move(name="act", arguments={"do": do}, observation="0") for do in path]
            trace += trace[:1]
            others = [{"which": i} for i in range(alternatives + 1)]
            found = await certify(desk, {"which": 0}, others, trace, level=0, recipe=recipe)
        assert found.alternatives == alternatives
        assert not found.is_sampled
        assert found.calls <= len(path), source
        if found.is_exact:
            exact += 1
            assert found.calls == len(path), source
    assert exact > 3


@pytest.mark.parametrize(
    ("calls", "is_exact", "others", "told"),
    [
        (1, True, 9, "1 calls tell it from 9 others: at least 3 are wanted: hide more"),
        (2, False, 9, "not proven: at least 3 calls are wanted, and 2 were proven to be needed"),
        (0, False, 0, "not proven: no other configuration with this statement"),
    ],
)
def test_a_short_certificate_says_whether_anything_was_proven(
    calls: int, is_exact: bool, others: int, told: str
) -> None:
    certificate = Certificate(calls=calls, is_exact=is_exact, alternatives=others)
    said = too_short(certificate, VerifyRecipe())
    assert said.startswith(told)
    assert ("verify.certificate_s=5" in said) == (not is_exact and others > 0)
