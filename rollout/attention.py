"""Attention over packed rows: one forward pass for rows of different lengths, caches in place.

`KvStore` holds keys and values of every row. `Plan` says where the T new tokens of one forward pass
belong: decode rows (one new token each) are computed where they lie, as a slice of the store, and
rows with more new tokens are computed in blocks padded to their longest. Query heads that share a key head
are computed as further queries, so that keys are never repeated. The model gets the plan as keyword `plan`, its attention implementation is
`ATTENTION`; no dense mask over all tokens is ever built.

Letters: T packed new tokens, R rows, H query heads, K key heads, G query heads per key head (H = K*G),
D head size, L longest row in sight.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

# Name under which transformers finds `attend`. It has no mask function on purpose: transformers then
# builds no mask.
ATTENTION = "millrace_packed"

# Rows are padded together when their numbers of new tokens have the same power of this: at most
# this much padding, and few blocks.
_BLOCK_RATIO = 4

Ints = npt.NDArray[np.int64]


class KvStore:
    """Keys and values of `num_rows` rows of `max_tokens`; rows are addressed by slot.

    Zero-filled, because a masked position still contributes 0 times its value. The system commits
    the memory when it is first written.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_kv_heads: int,
        max_tokens: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        shape = (num_layers, 2, num_rows, num_kv_heads, max_tokens, head_dim)
        self._all = torch.zeros(shape, dtype=dtype)
        self.num_kv_heads = num_kv_heads
        self.max_tokens = max_tokens
        self.head_dim = head_dim
        self.dtype = dtype
        self.layers = [(layer[0], layer[1]) for layer in self._all]
        """Per layer keys and values, each [rows, K, max_tokens, D]."""

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one row over another's."""
        self._all[:, :, target, :, :num_tokens] = self._all[:, :, source, :, :num_tokens]

    def swap(self, one: int, other: int, num_tokens: int) -> None:
        """Exchange the first tokens of two rows."""
        pair = self._all[:, :, [one, other], :, :num_tokens]
        self._all[:, :, [other, one], :, :num_tokens] = pair


@dataclass(slots=True, kw_only=True)
class _Decode:
    """The first `count` packed tokens: one of each row in the slice `low:high` that `select` names."""

    count: int
    low: int
    high: int
    longest: int
    bias: Tensor
    """[rows, 1, 1, L] 0 where the row may look, -inf elsewhere."""
    select: Tensor | None
    """[count] offsets into the slice; None when every row of it takes part."""


@dataclass(slots=True, kw_only=True)
class _Block:
    """Packed tokens `start:end`: the new tokens of some rows, padded to `width` each."""

    start: int
    end: int
    width: int
    longest: int
    slots: Tensor
    """[R]"""
    select: Tensor | None
    """[end - start] positions in the padded [R * width]; None when nothing is padded."""
    bias: Tensor
    """[R, 1, width, L] 0 where the token may look, -inf elsewhere."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """Where the T tokens of a forward pass belong."""

    store: KvStore
    order: Ints
    """[R] the rows, as indices into what `plan` was given, in packed order."""
    slots: Ints
    """[T] row of each packed token."""
    positions: Ints
    """[T] its position in the row."""
    last: Ints
    """[R] index of each row's last new token among the T, in the order of `order`."""
    write: Tensor
    """[T*K] where keys and values go, in a layer seen as [rows*K*max_tokens, D]."""
    decode: _Decode | None
    blocks: list[_Block]


def plan(store: KvStore, slots: Ints, starts: Ints, counts: Ints) -> Plan:
    """Plan a forward pass in which row `slots[i]` gets `counts[i]` tokens from position `starts[i]`."""
    order = np.lexsort((slots, _bucket(counts)))
    slots, starts, counts = slots[order], starts[order], counts[order]
    ends = np.cumsum(counts)
    token_slots = np.repeat(slots, counts)
    within = np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    positions = np.repeat(starts, counts) + within
    heads = np.arange(store.num_kv_heads)
    flat = (token_slots[:, None] * store.num_kv_heads + heads) * store.max_tokens
    write = (flat + positions[:, None]).reshape(-1)
    num_decode = int(np.count_nonzero(counts == 1))
    return Plan(
        store=store,
        order=order,
        slots=token_slots,
        positions=positions,
        last=ends - 1,
        write=torch.from_numpy(write),
        decode=_decode(store, slots[:num_decode], starts[:num_decode]) if num_decode else None,
        blocks=_blocks(store, slots, starts, counts, num_decode),
    )


def _bucket(counts: Ints) -> Ints:
    """0 for one new token, then one more for each power of `_BLOCK_RATIO`."""
    return np.ceil(np.log(counts) / np.log(_BLOCK_RATIO) - 1e-9).astype(np.int64)


def _decode(store: KvStore, slots: Ints, starts: Ints) -> _Decode:
    low, high = int(slots[0]), int(slots[-1]) + 1
    longest = int(starts.max()) + 1
    # Rows of the slice that do not take part look at one position: all -inf would give NaN.
    last_seen = np.zeros(high - low, dtype=np.int64)
    last_seen[slots - low] = starts
    select = None if len(slots) == high - low else torch.from_numpy(slots - low)
    return _Decode(
        count=len(slots),
        low=low,
        high=high,
        longest=longest,
        bias=_bias(last_seen[:, None], longest, store.dtype)[:, None],
        select=select,
    )


def _blocks(
    store: KvStore, slots: Ints, starts: Ints, counts: Ints, num_decode: int
) -> list[_Block]:
    """One block for each bucket of rows with more than one new token."""
    blocks: list[_Block] = []
    token = num_decode
    buckets = _bucket(counts[num_decode:])
    for bucket in np.unique(buckets):
        chosen = np.flatnonzero(buckets == bucket) + num_decode
        sizes, firsts = counts[chosen], starts[chosen]
        rows, width, total = len(chosen), int(sizes.max()), int(sizes.sum())
        longest = int((firsts + sizes).max())
        last_seen = firsts[:, None] + np.arange(width)
        select = None
        if total < rows * width:
            select = torch.from_numpy(np.flatnonzero(np.arange(width) < sizes[:, None]))
        blocks.append(
            _Block(
                start=token,
                end=token + total,
                width=width,
                longest=longest,
                slots=torch.from_numpy(slots[chosen]),
                select=select,
                bias=_bias(last_seen, longest, store.dtype)[:, None],
            )
        )
        token += total
    return blocks


def _bias(last_seen: Ints, longest: int, dtype: torch.dtype) -> Tensor:
    """[..., L] 0 up to and with position `last_seen[...]`, -inf after it."""
    hidden = np.arange(longest) > last_seen[..., None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(
        torch.from_numpy(hidden), float("-inf")
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: Plan,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over packed rows, as transformers calls it.

    query [1, H, T, D], key and value [1, K, T, D]; returns [1, T, H, D].
    """
    layer = module.layer_idx
    assert isinstance(layer, int) and attention_mask is None
    keys, values = plan.store.layers[layer]
    size = key.shape[-1]
    for store, new in ((keys, key), (values, value)):
        store.view(-1, size).index_copy_(0, plan.write, new[0].transpose(0, 1).reshape(-1, size))
    query_THD = query[0].transpose(0, 1)
    parts: list[Tensor] = []
    if plan.decode is not None:
        parts.append(_attend_decode(query_THD, keys, values, plan.decode, scaling))
    parts.extend(_attend_block(query_THD, keys, values, block, scaling) for block in plan.blocks)
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _attend_decode(
    query_THD: Tensor, keys: Tensor, values: Tensor, decode: _Decode, scaling: float
) -> Tensor:
    """[count, H, D] for one new token per row, on a slice of the store."""
    rows = slice(decode.low, decode.high)
    query = query_THD[: decode.count]
    if decode.select is not None:
        padded = query.new_zeros(decode.high - decode.low, *query.shape[1:])
        query = padded.index_copy_(0, decode.select, query)
    out = F.scaled_dot_product_attention(
        query.view(len(query), keys.shape[1], -1, keys.shape[3]),
        keys[rows, :, : decode.longest],
        values[rows, :, : decode.longest],
        attn_mask=decode.bias,
        scale=scaling,
    ).reshape(query.shape)
    return out if decode.select is None else out[decode.select]


def _attend_block(
    query_THD: Tensor, keys: Tensor, values: Tensor, block: _Block, scaling: float
) -> Tensor:
    """[end - start, H, D] for rows with several new tokens each."""
    rows, kv_heads, size = len(block.slots), keys.shape[1], keys.shape[3]
    heads = query_THD.shape[1]
    query = query_THD[block.start : block.end]
    if block.select is not None:
        padded = query.new_zeros(rows * block.width, heads, size)
        query = padded.index_copy_(0, block.select, query)
    query = query.view(rows, block.width, heads, size).transpose(1, 2)
    groups = heads // kv_heads
    out = F.scaled_dot_product_attention(
        query.reshape(rows, kv_heads, groups * block.width, size),
        keys[:, :, : block.longest].index_select(0, block.slots),
        values[:, :, : block.longest].index_select(0, block.slots),
        attn_mask=block.bias.repeat(1, 1, groups, 1),
        scale=scaling,
    )
    out = out.reshape(rows, heads, block.width, size).transpose(1, 2).reshape(-1, heads, size)
    return out if block.select is None else out[block.select]


AttentionInterface.register(ATTENTION, attend)
