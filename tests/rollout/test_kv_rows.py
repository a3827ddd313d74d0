"""Row allocation and prefix reuse, against a store that remembers which tokens it holds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.kv_rows import Prefix, RowTable

MAX_TOKENS = 12


class RecordingStore:
    """A store whose 'keys' are the tokens themselves, so that a wrong copy is visible."""

    def __init__(self, num_rows: int) -> None:
        self.content = np.full((num_rows, MAX_TOKENS), -1)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        self.content[target, :num_tokens] = self.content[source, :num_tokens]

    def swap(self, one: int, other: int, num_tokens: int) -> None:
        self.content[[one, other], :num_tokens] = self.content[[other, one], :num_tokens]


def make_table(max_running: int = 3, max_cached: int = 2) -> tuple[RowTable, RecordingStore]:
    store = RecordingStore(max_running + max_cached)
    table = RowTable(store, max_running=max_running, max_cached=max_cached, max_tokens=MAX_TOKENS)
    return table, store


def prompt(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def fill(table: RowTable, store: RecordingStore, slot: int) -> None:
    """Compute a row: its keys are its tokens."""
    length = table.lengths[slot]
    store.content[slot, :length] = table.tokens[slot, :length]
    table.computed[slot] = length


def opened(table: RowTable, store: RecordingStore, *tokens: int, version: int = 0) -> int:
    slot = table.open(prompt(*tokens), table.find(prompt(*tokens), version), version)
    fill(table, store, slot)
    return slot


def test_a_cached_row_is_taken_over_when_the_prompt_continues_it() -> None:
    table, store = make_table()
    slot = opened(table, store, 1, 2, 3)
    table.end(slot, is_kept=True)
    found = table.find(prompt(1, 2, 3, 4), 0)
    assert (found.slot, found.num_tokens) == (slot, 3)
    assert table.open(prompt(1, 2, 3, 4), found, 0) == slot
    assert table.num_cached == 0


def test_a_cached_row_is_copied_when_the_prompt_leaves_it() -> None:
    table, store = make_table()
    slot = opened(table, store, 1, 2, 3, 4)
    table.end(slot, is_kept=True)
    found = table.find(prompt(1, 2, 9), 0)
    other = table.open(prompt(1, 2, 9), found, 0)
    assert other != slot and table.num_cached == 1
    assert table.computed[other] == 2
    assert store.content[other, :2].tolist() == [1, 2]


def test_the_last_token_of_a_prompt_is_left_to_compute() -> None:
    table, store = make_table()
    opened(table, store, 1, 2, 3)
    assert table.find(prompt(1, 2, 3), 0).num_tokens == 2
    assert table.find(prompt(1), 0).num_tokens == 0


def test_rows_of_other_versions_are_not_found() -> None:
    table, store = make_table()
    opened(table, store, 1, 2, 3, version=4)
    assert table.find(prompt(1, 2, 3), 5) == Prefix(slot=0, num_tokens=0, coming=0)
    assert table.find(prompt(1, 2, 3), 4).num_tokens == 2


def test_a_running_prefill_is_announced() -> None:
    table, _ = make_table()
    asked = prompt(1, 2, 3, 4)
    table.open(asked, table.find(asked, 0), 0)
    found = table.find(asked, 0)
    assert (found.num_tokens, found.coming) == (0, 3)


def test_the_least_recently_used_row_is_evicted() -> None:
    table, store = make_table(max_cached=2)
    for token in (1, 2):
        table.end(opened(table, store, token, token, token), is_kept=True)
    # Copied from, so used: the row of 2 is now the oldest.
    shared = opened(table, store, 1, 1, 9)
    table.end(shared, is_kept=True)
    assert table.num_cached == 2
    assert table.find(prompt(1, 1, 1, 1), 0).num_tokens == 3
    assert table.find(prompt(2, 2, 2, 2), 0).num_tokens == 0


def test_nothing_is_cached_without_room_for_it() -> None:
    table, store = make_table(max_cached=0)
    table.end(opened(table, store, 1, 2, 3), is_kept=True)
    assert table.num_cached == 0
    assert table.used_frac == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "end", "abort", "exchange", "drop"]),
            st.integers(0, 99),
            st.lists(st.integers(0, 1), min_size=1, max_size=MAX_TOKENS),
        ),
        max_size=30,
    )
)
def test_computed_tokens_always_have_their_keys(
    actions: list[tuple[str, int, list[int]]],
) -> None:
    table, store = make_table()
    running: list[int] = []
    for action, number, tokens in actions:
        if action == "open" and len(running) < 3:
            slot = opened(table, store, *tokens)
            assert slot not in running
            running.append(slot)
        elif action in {"end", "abort"} and running:
            table.end(running.pop(number % len(running)), is_kept=action == "end")
        elif action == "exchange":
            one, other = number % 5, number // 5 % 5
            table.exchange(one, other)
            swap = {one: other, other: one}
            running = [swap.get(slot, slot) for slot in running]
        elif action == "drop":
            table.drop_cached()
        for slot in range(5):
            count = table.computed[slot]
            assert store.content[slot, :count].tolist() == table.tokens[slot, :count].tolist()
        assert np.count_nonzero(table.computed) == len(running) + table.num_cached
        assert np.count_nonzero(table.kv_version == 0) == len(running) + table.num_cached
        assert (table.kv_version[running] == 0).all()
        assert table.num_cached <= 2


def test_what_older_weights_computed_is_never_found_again() -> None:
    table, store = make_table()
    table.end(opened(table, store, 1, 2, 3), is_kept=True)
    table.drop_cached()
    table.end(opened(table, store, 7, 8, 9, version=1), is_kept=True)
    assert table.find(prompt(1, 2, 3, 4), 1).num_tokens == 0
    assert table.find(prompt(7, 8, 9, 4), 1).num_tokens == 3
