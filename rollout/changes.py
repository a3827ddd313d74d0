"""What changed between two stretches of bytes, number by number.

    how many (4 bytes) | positions, 4 bytes each | new values, `width` each | bytes past the last number

Bits are compared, not values: what is made again is the same to the last bit, NaN included.
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_COUNT = np.dtype("<u4")
WIDTHS = (1, 2, 4, 8)
"""Bytes that a number may have."""


def find_changes(old: Bytes, new: Bytes, *, width: int) -> Bytes | None:
    """What makes `new` of `old`, which are equally long; None unless that is shorter than `new`."""
    assert len(old) == len(new) and width in WIDTHS
    values, rest = _split(new, width)
    differs = values != _split(old, width)[0]
    count = int(np.count_nonzero(differs))
    if _COUNT.itemsize + count * (_COUNT.itemsize + width) + len(rest) >= len(new):
        return None
    where = np.flatnonzero(differs)
    parts = [np.array([count], _COUNT), where.astype(_COUNT), values[where], rest]
    return np.concatenate([part.view(np.uint8) for part in parts])


def apply_changes(old: Bytes, changes: Bytes, *, width: int) -> Bytes:
    """The new bytes, from the old ones; raises ValueError for what is not of such a pair."""
    new = old.copy()
    values, rest = _split(new, width)
    if len(changes) < _COUNT.itemsize:
        raise ValueError("changes end before they say how many they are")
    count = int(changes[: _COUNT.itemsize].view(_COUNT)[0])
    end = _COUNT.itemsize * (1 + count)
    if len(changes) != end + count * width + len(rest):
        raise ValueError(f"{len(changes)} bytes are not {count} changes")
    where = changes[_COUNT.itemsize : end].view(_COUNT)
    if count and int(where.max()) >= len(values):
        raise ValueError(f"change {int(where.max())} of {len(values)} numbers")
    values[where] = changes[end : end + count * width].view(values.dtype)
    rest[:] = changes[len(changes) - len(rest) :]
    return new


def _split(data: Bytes, width: int) -> tuple[NDArray[np.unsignedinteger], Bytes]:
    """The numbers, and the bytes that are too few for another."""
    end = len(data) - len(data) % width
    return data[:end].view(f"<u{width}"), data[end:]
