"""How many calls tell the true configuration from the alternatives: explored beside the environment.

From the start, breadth first over the calls that change hidden state: what each call tells apart in each
state. A sequence of k calls is made in states that k-1 changes reach, so that as long as no k of the
sets found there cover all alternatives, more than k calls are needed.
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from envpool.task import Config

from .domain import Move, calls_of
from .hitting import Bounds, least_cover, maximal
from .lockstep import Call, Lockstep
from .nearby import alternatives

# Alternatives that deeper states are explored with: the hardest to tell apart. A bound that holds for some
# holds for all.
HARDEST = 16
# Calls and copies that may be made for each second allowed, so that what is found depends on no clock.
WORK_PER_S = 12_000
# How much more work may be done until as many calls as are wanted are proven to be needed.
PROOF = 8
# Share of the work left to states along the oracle's trace when the exploration is cut.
TRACE_SHARE = 0.3
# And what is added for a short sequence of calls that is enough.
UPPER_SHARE = 0.3
# States along the trace from which all calls are considered.
MAX_TRACE_STATES = 8


def certify(
    config: Config,
    others: Sequence[Config],
    trace: Sequence[Move],
    count: int,
    level: int,
    seed: int,
    allowed_s: float,
    wanted: int,
) -> dict[str, Any]:
    """`calls`, `is_exact`, `is_sampled` and `alternatives`, as in `Certificate`.

    `trace`: the oracle's calls with what they showed, `done` left out. Until `wanted` calls are proven to
    be needed more work is done than after that.
    """
    deadline = time.process_time() + allowed_s
    found = alternatives(config, others, count, level, seed)
    told = _told_apart(config, found, trace)
    found = [one for one, is_told in zip(found, told, strict=True) if is_told]
    if not found:
        return {"calls": 0, "is_exact": False, "is_sampled": False, "alternatives": 0}
    explorer = _Explorer(config, found, trace, int(allowed_s * WORK_PER_S), deadline)
    low = explorer.lower(wanted)
    high = explorer.upper()
    return {
        "calls": min(low, high),
        "is_exact": low >= high and not explorer.is_sampled,
        "is_sampled": explorer.is_sampled,
        "alternatives": len(found),
    }


def _told_apart(config: Config, found: Sequence[Config], trace: Sequence[Move]) -> list[bool]:
    """Which alternatives the oracle's own calls tell from the true one.

    In the others it would answer the same and be wrong: they are none that the environment is for.
    """
    lockstep = Lockstep([config, *found])
    tools = lockstep.envs[0]._tools
    seen = 0
    for name, arguments, _ in trace:
        call = Call.of(tools[name], arguments)
        if call is not None:
            seen |= lockstep.apart(call)
    return [bool(seen >> i & 1) for i in range(len(found))]


class _State(msgspec.Struct, frozen=True):
    depth: int
    """Changes that lead to it."""
    saved: bytes


class _Explorer:
    def __init__(
        self,
        config: Config,
        found: Sequence[Config],
        trace: Sequence[Move],
        work: int,
        deadline: float,
    ) -> None:
        self.is_sampled = False
        """Whether the bound rests on some states only."""
        self._config, self._all_found = config, list(found)
        self._work = self._allowed = work
        self._deadline = deadline
        self._spent = 0
        # Tools that were seen to change something.
        self._changing: set[str] = set()
        self._lockstep = Lockstep([config, *found])
        env = self._lockstep.envs[0]
        self._calls = calls_of(env, config, trace)
        calls = [Call.of(env._tools[name], arguments) for name, arguments, _ in trace]
        self._trace = [call for call in calls if call is not None]
        self._start()
        # Of the calls that change nothing, at the start.
        self._still: list[int] = []
        self._is_first = True

    def _start(self) -> None:
        """Begin anew with the alternatives that the lockstep has."""
        self._universe = (1 << len(self._lockstep.envs) - 1) - 1
        self._sets: list[tuple[int, int]] = []
        self._root = _State(0, self._lockstep.save())
        self._known = {self._lockstep.key()}

    def lower(self, wanted: int) -> int:
        """Calls that are needed at least; what more than `wanted` are is looked into less."""
        following = self._expand(self._root)
        self._is_first = False
        if not following:
            return self._least(0).low
        if self._is_enough(1):
            return 1
        size, states = 2, following
        if self._narrow():
            states = self._expand(self._root)
        while states:
            # Sets of states that size - 1 changes reach are known after this.
            following = []
            for state in states:
                if self._is_out_of_work(PROOF if size < wanted else 1):
                    return self._sampled(size)
                following += self._expand(state)
            if self._is_enough(size):
                return size
            size, states = size + 1, following
        # Nothing else can be reached.
        return max(size, self._least(size).low)

    def upper(self) -> int:
        """Calls that are enough: a sequence that tells all alternatives apart, as short as was found."""
        self._spent += self._lockstep.work
        self._lockstep = Lockstep([self._config, *self._all_found])
        self._start()
        self._work = self._spent + int(self._allowed * UPPER_SHARE)
        high = min(len(self._fewer(from_end=True)), len(self._fewer(from_end=False)))
        if self._union(self._still) == self._universe:
            high = min(high, least_cover(self._still, self._universe).high)
        return high

    def _fewer(self, *, from_end: bool) -> list[Call]:
        """The oracle's calls without those that are not needed, tried from the end or from the start."""
        kept = self._trace
        if from_end:
            kept = kept[: self._needed(kept)]
        size = len(kept) // 2
        while size:
            place = max(0, len(kept) - size) if from_end else 0
            while 0 <= place < len(kept) and not self._is_out_of_work():
                fewer = kept[:place] + kept[place + size :]
                is_enough = self._needed(fewer) > 0
                kept = fewer if is_enough else kept
                if from_end:
                    place -= size
                elif not is_enough:
                    place += size
            size //= 2
        return kept

    def _narrow(self) -> bool:
        """Go on with the alternatives that are hardest to tell apart at the start, if they are many."""
        count = len(self._all_found)
        if count <= HARDEST:
            return False
        sets = maximal(one for one, _ in self._sets)
        often = [sum(one >> i & 1 for one in sets) for i in range(count)]
        hardest = sorted(sorted(range(count), key=lambda i: (often[i], i))[:HARDEST])
        self._spent += self._lockstep.work
        self._lockstep = Lockstep([self._config, *(self._all_found[i] for i in hardest)])
        self._start()
        return True

    def _is_enough(self, size: int) -> bool:
        """Whether `size` sets of states that `size - 1` changes reach might do."""
        sets = [one for one, depth in self._sets if depth < size]
        if self._union(sets) != self._universe:
            return False
        return least_cover(sets, self._universe, goal=size).low <= size

    def _least(self, depth: int) -> Bounds:
        return least_cover((one for one, of in self._sets if of <= depth), self._universe)

    def _union(self, sets: Sequence[int]) -> int:
        found = 0
        for one in sets:
            found |= one
        return found

    def _expand(self, state: _State) -> list[_State]:
        """Note what each call tells apart in a state; gives the states that they lead to, new ones."""
        lockstep = self._lockstep
        lockstep.restore(state.saved)
        base = lockstep.key()
        found: set[int] = set()
        following: list[_State] = []
        for calls in self._calls:
            if not calls:
                continue
            if calls[0].name not in self._changing:
                told = self._quietly(calls, base)
                if told is not None:
                    found |= told
                    continue
                self._changing.add(calls[0].name)
                lockstep.restore(state.saved)
            for call in calls:
                found.add(lockstep.apart(call))
                key = lockstep.key()
                if key == base:
                    continue
                if key not in self._known:
                    self._known.add(key)
                    following.append(_State(state.depth + 1, lockstep.save()))
                lockstep.restore(state.saved)
        self._sets += [(one, state.depth) for one in maximal(found)]
        return following

    def _quietly(self, calls: Sequence[Call], base: bytes) -> set[int] | None:
        """What calls tell apart; None if one of them changed something."""
        lockstep = self._lockstep
        few = lockstep.few()
        told: set[int] = set()
        for call in calls:
            told.add(lockstep.apart(call))
            if lockstep.few() != few:
                return None
        if lockstep.key() != base:
            return None
        if self._is_first:
            self._still += told
        return told

    def _sampled(self, size: int) -> int:
        """A bound for the states explored and some along the oracle's trace: the rest were too many.

        None of these is nearer to the start than `size - 1` changes, or it would have been explored; they
        are taken to be no further.
        """
        lockstep, depth = self._lockstep, size - 1
        lockstep.restore(self._root.saved)
        before, states = lockstep.few(), list[_State]()
        for call in self._trace:
            self._sets.append((lockstep.apart(call), depth))
            after = lockstep.few()
            if after != before:
                before = after
                states.append(_State(depth, lockstep.save()))
        self._work = self._spent + lockstep.work + int(self._allowed * TRACE_SHARE)
        for state in states[depth :: max(1, len(states) // MAX_TRACE_STATES)]:
            if self._is_out_of_work():
                break
            self._expand(state)
        low = self._least(depth).low
        self.is_sampled = low > size  # what the states explored prove is so
        return max(size, low)

    def _needed(self, calls: Sequence[Call]) -> int:
        """How many of the calls, from the first on, tell all apart; 0 where all of them do not."""
        self._lockstep.restore(self._root.saved)
        seen = 0
        for number, call in enumerate(calls, start=1):
            seen |= self._lockstep.apart(call)
            if seen == self._universe:
                return number
        return 0

    def _is_out_of_work(self, times: int = 1) -> bool:
        is_spent = self._spent + self._lockstep.work > self._work * times
        return is_spent or time.process_time() > self._deadline
