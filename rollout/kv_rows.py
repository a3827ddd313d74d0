"""Which row of the key-value store holds which tokens: allocation, prefix reuse, eviction.

A row is free, running (a request owns it) or cached (its request ended; kept for its prefix). Nothing
here computes: `computed[slot]` says how many of a row's tokens have keys and values in the store, and
`kv_version[slot]` which weights made them. Rows made by other weights than the present ones, or by a
mixture, are never found as a prefix.
"""

import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Version of a row whose keys and values are nobody's prefix: free, or filled under several weights.
NO_VERSION = -1


class RowStore(Protocol):
    """What moves the content of rows; `rollout.attention.KvStore` is one."""

    def copy(self, source: int, target: int, num_tokens: int) -> None: ...

    def swap(self, one: int, other: int, num_tokens: int) -> None: ...


@dataclass(slots=True, kw_only=True, frozen=True)
class Prefix:
    """What the rows offer a prompt: `num_tokens` of it in `slot`, `coming` once prefills end."""

    slot: int
    num_tokens: int
    coming: int


class RowTable:
    """The rows of one engine: `max_running + max_cached` slots of `max_tokens` tokens.

    A free slot exists whenever fewer than `max_running` rows run, because at most `max_cached` are
    cached.
    """

    def __init__(
        self, store: RowStore, *, max_running: int, max_cached: int, max_tokens: int
    ) -> None:
        num_slots = max_running + max_cached
        self._store = store
        self._max_cached = max_cached
        self.tokens = np.zeros((num_slots, max_tokens), dtype=np.int32)
        self.lengths = np.zeros(num_slots, dtype=np.int64)
        """[slots] tokens known."""
        self.computed = np.zeros(num_slots, dtype=np.int64)
        """[slots] of them, how many have keys and values."""
        self.kv_version = np.full(num_slots, NO_VERSION, dtype=np.int64)
        self._free = list(range(num_slots))
        # Least recently used first.
        self._cached: OrderedDict[int, None] = OrderedDict()
        # Cached rows by what they hold, and how many of these end at each length.
        self._by_content: dict[bytes, list[int]] = {}
        self._num_ending: Counter[int] = Counter()

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def used_frac(self) -> float:
        """Share of the store that holds keys and values."""
        return float(self.computed.sum()) / self.tokens.size

    def find(self, prompt: npt.NDArray[np.int32], version: int) -> Prefix:
        """The longest prefix of `prompt` (its last token excepted) in rows made by `version`.

        The last token is left to compute: its forward pass gives the first sampled token.
        """
        # All cached rows are of the present version: the others were dropped with it.
        extended = self._extended(prompt)
        if extended is not None:
            return extended
        wanted = prompt[:-1]
        slots = np.flatnonzero(self.kv_version == version)
        if not len(slots) or not len(wanted):
            return Prefix(slot=0, num_tokens=0, coming=0)
        differs = self.tokens[slots, : len(wanted)] != wanted
        shared = np.where(differs.any(axis=1), differs.argmax(axis=1), len(wanted))
        coming = int(np.minimum(shared, self.lengths[slots]).max())
        ready = np.minimum(shared, self.computed[slots])
        # Among equals the row that has nothing beyond the prefix: it can be taken over.
        best = np.lexsort((self.computed[slots], -ready))[0]
        return Prefix(slot=int(slots[best]), num_tokens=int(ready[best]), coming=coming)

    def _extended(self, prompt: npt.NDArray[np.int32]) -> Prefix | None:
        """The longest cached row that `prompt` extends whole, as a conversation's next turn does.

        Found by its content: comparing with every row takes several times as long.
        """
        for end in sorted(self._num_ending, reverse=True):
            if end < len(prompt):
                slots = self._by_content.get(prompt[:end].tobytes())
                if slots:
                    return Prefix(slot=slots[-1], num_tokens=end, coming=end)
        return None

    def _cache(self, slot: int) -> None:
        self._cached[slot] = None
        end = int(self.computed[slot])
        if end:
            # Members of a group often say the same: several rows may hold the same tokens.
            self._by_content.setdefault(self._content(slot), []).append(slot)
            self._num_ending[end] += 1

    def _uncache(self, slot: int) -> None:
        del self._cached[slot]
        end = int(self.computed[slot])
        if end:
            content = self._content(slot)
            self._by_content[content].remove(slot)
            if not self._by_content[content]:
                del self._by_content[content]
            self._num_ending[end] -= 1
            if not self._num_ending[end]:
                del self._num_ending[end]

    def _content(self, slot: int) -> bytes:
        """The tokens of a row that have keys and values."""
        return self.tokens[slot, : self.computed[slot]].tobytes()

    def open(self, prompt: npt.NDArray[np.int32], prefix: Prefix, version: int) -> int:
        """A running row holding `prompt`, its prefix in place; returns the slot."""
        source, shared = prefix.slot, prefix.num_tokens
        if shared and source in self._cached and self.computed[source] == shared:
            self._uncache(source)
            slot = source
        else:
            slot = heapq.heappop(self._free)
            if shared:
                self._store.copy(source, slot, shared)
                if source in self._cached:
                    self._cached.move_to_end(source)
        self.tokens[slot, : len(prompt)] = prompt
        self.lengths[slot] = len(prompt)
        self.computed[slot] = shared
        self.kv_version[slot] = version
        return slot

    def end(self, slot: int, *, is_kept: bool) -> None:
        """A running row ended: cache it if it is worth it, else free it."""
        if not is_kept or self._max_cached == 0 or self.kv_version[slot] == NO_VERSION:
            self._release(slot)
            return
        if len(self._cached) == self._max_cached:
            oldest = next(iter(self._cached))
            self._uncache(oldest)
            self._release(oldest)
        self._cache(slot)

    def drop_cached(self) -> None:
        """Free all cached rows: the weights changed."""
        slots = list(self._cached)
        self._cached.clear()
        self._by_content.clear()
        self._num_ending.clear()
        for slot in slots:
            self._release(slot)

    def exchange(self, one: int, other: int) -> None:
        """Let two rows trade places, whatever they hold."""
        longest = int(max(self.computed[one], self.computed[other]))
        if longest:
            self._store.swap(one, other, longest)
        for column in (self.tokens, self.lengths, self.computed, self.kv_version):
            column[[one, other]] = column[[other, one]]
        swap = {one: other, other: one}
        self._cached = OrderedDict((swap.get(slot, slot), None) for slot in self._cached)
        for slots in self._by_content.values():
            slots[:] = [swap.get(slot, slot) for slot in slots]
        self._free = [swap.get(slot, slot) for slot in self._free]
        heapq.heapify(self._free)

    def _release(self, slot: int) -> None:
        self.lengths[slot] = 0
        self.computed[slot] = 0
        self.kv_version[slot] = NO_VERSION
        heapq.heappush(self._free, slot)
