"""Rows of different lengths become one flat sequence, in which a shared beginning lies once.

A family is rows that begin alike: their prefix, then what follows it in each row. A row that shares
nothing is a family that is all prefix. No token is padding.

P: tokens of the flat sequence. N: trained tokens, row by row; a token of the prefix that several
rows train is there once for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rollout.types import Row

# Fewer tokens in common are computed for each row: attention to them costs more than they do.
MIN_SHARED = 8

Ints = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True, frozen=True)
class Family:
    """Contiguous tokens: the prefix `start:prefix_end`, then suffixes, each up to one of `ends`."""

    start: int
    prefix_end: int
    ends: tuple[int, ...] = ()
    """Empty for a row that shares nothing."""

    @property
    def end(self) -> int:
        return self.ends[-1] if self.ends else self.prefix_end

    @property
    def suffixes(self) -> list[tuple[int, int]]:
        return list(zip((self.prefix_end, *self.ends), self.ends, strict=False))

    @property
    def longest(self) -> int:
        """Tokens of its longest row."""
        prefix = self.prefix_end - self.start
        return prefix + max((end - start for start, end in self.suffixes), default=0)


@dataclass(slots=True, kw_only=True, frozen=True, eq=False)
class Layout:
    """What attention has to know of a flat sequence."""

    families: tuple[Family, ...]
    kept: dict[Any, Any] = field(default_factory=dict)
    """Masks that the layers have in common, made by the first."""

    @property
    def num_tokens(self) -> int:
        return self.families[-1].end


@dataclass(slots=True, kw_only=True, frozen=True)
class Packed:
    """Input of a forward pass, and what it is to predict."""

    ids_P: Tensor
    """int64"""
    positions_P: Tensor
    """int64, of the token in its row."""
    layout: Layout
    sources_N: Tensor
    """int64, where in P the hidden state lies that predicts the token: the one before it in its row."""
    targets_N: Tensor
    """int64, ids."""
    rows_N: Tensor
    """int64, index of the token's row."""

    def to(self, device: torch.device) -> "Packed":
        return Packed(
            ids_P=self.ids_P.to(device),
            positions_P=self.positions_P.to(device),
            layout=self.layout,
            sources_N=self.sources_N.to(device),
            targets_N=self.targets_N.to(device),
            rows_N=self.rows_N.to(device),
        )


def common_prefix(rows: Sequence[Row]) -> int:
    """Tokens with which all rows begin, short of the whole of any; 0 where sharing does not pay."""
    if len(rows) < 2:
        return 0
    most = min(len(row.token_ids) for row in rows) - 1
    first = rows[0].token_ids[:most]
    for row in rows[1:]:
        differ = np.flatnonzero(first != row.token_ids[: len(first)])
        first = first[: differ[0]] if len(differ) else first
    return len(first) if len(first) >= MIN_SHARED else 0


def pack_rows(families: Sequence[Sequence[Row]]) -> Packed:
    """Lay rows out; those of one inner sequence share the beginning they have in common.

    The rows are numbered in the order given. Nothing may be masked at the start of a row.
    """
    made = _Flat()
    for rows in families:
        if prefix := common_prefix(rows):
            made.add_family(rows, prefix)
        else:
            for row in rows:
                made.add_row(row)
    return made.packed()


class _Flat:
    """Collects the parts of a `Packed`."""

    def __init__(self) -> None:
        self._families: list[Family] = []
        self._ids: list[Ints] = []
        self._positions: list[Ints] = []
        self._sources: list[Ints] = []
        self._targets: list[Ints] = []
        self._rows: list[Ints] = []
        self._end = 0

    def add_row(self, row: Row) -> None:
        start, length = self._end, len(row.token_ids)
        self._append(row, 0)
        self._train(row, start + np.arange(length))
        self._families.append(Family(start=start, prefix_end=start + length))

    def add_family(self, rows: Sequence[Row], prefix: int) -> None:
        start = self._end
        self._append(rows[0], 0, prefix)
        ends: list[int] = []
        for row in rows:
            own = self._end
            self._append(row, prefix)
            # Where each token of the row lies: the prefix has one place for all rows.
            places = np.arange(len(row.token_ids))
            self._train(row, np.where(places < prefix, start + places, own - prefix + places))
            ends.append(self._end)
        self._families.append(Family(start=start, prefix_end=start + prefix, ends=tuple(ends)))

    def packed(self) -> Packed:
        return Packed(
            ids_P=_joined(self._ids),
            positions_P=_joined(self._positions),
            layout=Layout(families=tuple(self._families)),
            sources_N=_joined(self._sources),
            targets_N=_joined(self._targets),
            rows_N=_joined(self._rows),
        )

    def _append(self, row: Row, begin: int, end: int | None = None) -> None:
        ids = row.token_ids[begin:end].astype(np.int64)
        self._ids.append(ids)
        self._positions.append(np.arange(begin, begin + len(ids)))
        self._end += len(ids)

    def _train(self, row: Row, places: Ints) -> None:
        trained = np.flatnonzero(row.mask)
        assert not len(trained) or trained[0], "nothing predicts the first token of a row"
        self._sources.append(places[trained - 1])
        self._targets.append(row.token_ids[trained].astype(np.int64))
        self._rows.append(np.full(len(trained), len(self._rows)))


def _joined(parts: Sequence[Ints]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))
