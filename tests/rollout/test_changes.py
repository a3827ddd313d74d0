import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.changes import WIDTHS, Bytes, apply_changes, find_changes


def as_bytes(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Bytes, Bytes, int]:
    """Two equally long stretches that differ in some of their numbers, and the width of those."""
    width = draw(st.sampled_from(WIDTHS))
    old = draw(st.binary(max_size=200))
    new = bytearray(old)
    for index in draw(st.lists(st.integers(0, max(0, len(old) - 1)), max_size=12)):
        new[index : index + 1] = draw(st.binary(min_size=1, max_size=1))[: len(old)]
    return as_bytes(old), as_bytes(bytes(new)), width


@given(pairs())
def test_what_was_found_makes_the_new_bytes_of_the_old(pair: tuple[Bytes, Bytes, int]) -> None:
    old, new, width = pair
    changes = find_changes(old, new, width=width)
    if changes is not None:
        assert len(changes) < len(new)
        before = old.tobytes()
        assert apply_changes(old, changes, width=width).tobytes() == new.tobytes()
        assert old.tobytes() == before


@pytest.mark.parametrize("width", WIDTHS)
def test_a_change_costs_its_position_and_its_value(width: int) -> None:
    old = np.zeros(1000 * width, np.uint8)
    new = old.copy()
    for number in (0, 7, 999):
        new[number * width] = 1
    changes = find_changes(old, new, width=width)
    assert changes is not None and len(changes) == 4 + 3 * (4 + width)
    assert apply_changes(old, changes, width=width).tolist() == new.tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_none_is_found_where_it_would_not_be_shorter(width: int) -> None:
    old = np.zeros(100 * width, np.uint8)
    changed = range(0, 100 * width, width)
    most = (100 * width - 5) // (4 + width)
    for count, is_found in ((most, True), (most + 1, False)):
        new = old.copy()
        new[list(changed)[:count]] = 1
        assert (find_changes(old, new, width=width) is not None) is is_found


def test_bits_are_compared() -> None:
    old = np.array([np.nan, 0.0, 1.0] * 9, "<f4").view(np.uint8)
    new = np.array([np.nan, -0.0, 1.0] + [np.nan, 0.0, 1.0] * 8, "<f4").view(np.uint8)
    changes = find_changes(old, new, width=4)
    assert changes is not None and len(changes) == 4 + 8
    assert apply_changes(old, changes, width=4).tobytes() == new.tobytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (b"", "end before"),
        (b"\1\0\0\0", "4 bytes are not 1 changes"),
        (b"\1\0\0\0" + b"\3\0\0\0" + b"\1\1\1\1" + b"xx" + b"y", "15 bytes are not 1"),
        (b"\1\0\0\0" + b"\2\0\0\0" + b"\1\1\1\1" + b"xx", "change 2 of 2 numbers"),
    ],
)
def test_what_is_not_of_such_a_pair_is_refused(changes: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_changes(np.zeros(10, np.uint8), as_bytes(changes), width=4)
