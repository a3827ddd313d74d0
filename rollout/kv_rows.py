"""Which row of the key-value store holds which tokens: allocation, prefix reuse, eviction.

A row is free, running (a request owns it) or cached (its request ended; kept for its prefix). Nothing
here computes: `computed[slot]` says how many of a row's tokens have keys and values in the store, and
`kv_version[slot]` which weights made them. Rows made by other weights than the present ones, or by a
mixture, are never found as a prefix.
"""

import heapq
from collections import OrderedDict
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
        wanted = prompt[:-1]
        slots = np.flatnonzero(self.kv_version == version)
        if not len(slots) or not len(wanted):
            return Prefix(slot=0, num_tokens=0, coming=0)
        takeable = self._extended(slots, prompt)
        if takeable is not None:
            return takeable
        differs = self.tokens[slots, : len(wanted)] != wanted
        shared = np.where(differs.any(axis=1), differs.argmax(axis=1), len(wanted))
        coming = int(np.minimum(shared, self.lengths[slots]).max())
        ready = np.minimum(shared, self.computed[slots])
        # Among equals the row that has nothing beyond the prefix: it can be taken over.
        best = np.lexsort((self.computed[slots], -ready))[0]
        return Prefix(slot=int(slots[best]), num_tokens=int(ready[best]), coming=coming)

    def _extended(
        self, slots: npt.NDArray[np.int64], prompt: npt.NDArray[np.int32]
    ) -> Prefix | None:
        """A cached row that `prompt` extends whole, as the next turn of a conversation does.

        Rows are first told apart by two tokens: comparing all of all rows costs ten times as much.
        """
        ends = self.computed[slots]
        fits = slots[(ends > 0) & (ends < len(prompt))]
        ends = self.computed[fits]
        is_likely = self.tokens[fits, ends - 1] == prompt[ends - 1]
        is_likely &= self.tokens[fits, ends // 2] == prompt[ends // 2]
        likely = fits[is_likely]
        # The longest first: nothing shares more of the prompt than what was just computed for it.
        for slot in likely[np.argsort(-self.computed[likely])].tolist():
            end = int(self.computed[slot])
            if slot in self._cached and np.array_equal(self.tokens[slot, :end], prompt[:end]):
                return Prefix(slot=slot, num_tokens=end, coming=end)
        return None

    def open(self, prompt: npt.NDArray[np.int32], prefix: Prefix, version: int) -> int:
        """A running row holding `prompt`, its prefix in place; returns the slot."""
        source, shared = prefix.slot, prefix.num_tokens
        if shared and source in self._cached and self.computed[source] == shared:
            del self._cached[source]
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
            self._release(self._cached.popitem(last=False)[0])
        self._cached[slot] = None

    def drop_cached(self) -> None:
        """Free all cached rows: the weights changed."""
        while self._cached:
            self._release(self._cached.popitem()[0])

    def exchange(self, one: int, other: int) -> None:
        """Let two rows trade places, whatever they hold."""
        longest = int(max(self.computed[one], self.computed[other]))
        if longest:
            self._store.swap(one, other, longest)
        for column in (self.tokens, self.lengths, self.computed, self.kv_version):
            column[[one, other]] = column[[other, one]]
        swap = {one: other, other: one}
        self._cached = OrderedDict((swap.get(slot, slot), None) for slot in self._cached)
        self._free = [swap.get(slot, slot) for slot in self._free]
        heapq.heapify(self._free)

    def _release(self, slot: int) -> None:
        self.lengths[slot] = 0
        self.computed[slot] = 0
        self.kv_version[slot] = NO_VERSION
        heapq.heappush(self._free, slot)
