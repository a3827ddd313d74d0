"""Ways to compute attention over packed rows; all give the same, and the same gradient.

`Blocks`: on a CPU, full attention, one kernel call for each family and each suffix. `flex`: on
CUDA, all rows in one compiled kernel. `row_by_row` needs nothing but matrix products, and takes what
the others do not: sliding windows and capped scores on a CPU.

H query heads, K key heads, D head size, P tokens, S tokens of a block. Queries are [1, H, P, D],
keys and values [1, K, P, D], what comes out is [1, P, H, D].
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from learner.layout import Family, Layout

_log = logging.getLogger(__name__)

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Blocks(torch.autograd.Function):
    """Each family as blocks of the CPU's flash kernel; one node of the graph for a whole layer.

    A suffix attends to the prefix and to itself in two blocks, which are put together by their
    log-sum-exp. Flash's backward pass of a block needs of the forward pass no more than output and
    log-sum-exp of the whole row: so the gradient is exact, and nothing is stored twice.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        num_heads, num_tokens, size = query.shape[1:]
        out = query.new_empty(1, num_tokens, num_heads, size)
        wide = torch.promote_types(query.dtype, torch.float32)
        lse = query.new_empty(1, num_tokens, num_heads, dtype=wide)

        def block(queries: slice, keys: slice, *, is_causal: bool) -> tuple[Tensor, Tensor]:
            found, found_lse = _flash(
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                0.0,
                is_causal,
                scale=scale,
            )
            return found.transpose(1, 2), found_lse.transpose(1, 2)

        for family in layout.families:
            prefix = slice(family.start, family.prefix_end)
            out[:, prefix], lse[:, prefix] = block(prefix, prefix, is_causal=True)
            for start, end in family.suffixes:
                own = slice(start, end)
                out[:, own], lse[:, own] = block(own, own, is_causal=True)
            if family.ends:
                behind = slice(family.prefix_end, family.end)
                seen, seen_lse = block(behind, prefix, is_causal=False)
                total = torch.logaddexp(seen_lse, lse[:, behind])
                share = (seen_lse - total).exp_()[..., None]
                out[:, behind] = torch.lerp(out[:, behind].to(wide), seen.to(wide), share)
                lse[:, behind] = total
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale = layout, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grad_out, out, lse = grads[0].transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2)
        # Laid out as a projection's output is, so that nothing is copied behind this.
        grad_query, grad_key, grad_value = (
            one.new_empty(1, one.shape[2], one.shape[1], one.shape[3]).transpose(1, 2)
            for one in (query, key, value)
        )

        def block(queries: slice, keys: slice, *, is_causal: bool) -> tuple[Tensor, ...]:
            return _flash_backward(
                grad_out[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                out[:, :, queries],
                lse[:, :, queries],
                0.0,
                is_causal,
                scale=ctx.scale,
            )

        for family in ctx.layout.families:
            prefix = slice(family.start, family.prefix_end)
            for start, end in [(family.start, family.prefix_end), *family.suffixes]:
                own = slice(start, end)
                (
                    grad_query[:, :, own],
                    grad_key[:, :, own],
                    grad_value[:, :, own],
                ) = block(own, own, is_causal=True)
            if family.ends:
                behind = slice(family.prefix_end, family.end)
                more_query, more_key, more_value = block(behind, prefix, is_causal=False)
                grad_query[:, :, behind] += more_query
                grad_key[:, :, prefix] += more_key
                grad_value[:, :, prefix] += more_value
        return grad_query, grad_key, grad_value, None, None


def row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same in plain operations, for every device; keys of a prefix are copied for each row."""
    spans = [
        span
        for family in layout.families
        for span in [(family.start, family.prefix_end), *family.suffixes]
    ]
    sizes = [end - start for start, end in spans]
    parts = zip(*(one.split(sizes, dim=2) for one in (query, key, value)), strict=True)
    done: list[Tensor] = []
    for family in layout.families:
        queries, prefix_keys, prefix_values = next(parts)
        done.append(_one(queries, prefix_keys, prefix_values, scale, window, softcap))
        for _ in family.ends:
            queries, keys, values = next(parts)
            keys = torch.cat([prefix_keys, keys], dim=2)
            values = torch.cat([prefix_values, values], dim=2)
            done.append(_one(queries, keys, values, scale, window, softcap))
    return torch.cat(done, dim=1)


def _one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """[1, S, H, D]: the last S tokens of a row attend to all of it."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    keys = torch.arange(num_keys, device=query.device)
    ago = keys[num_keys - num_queries :, None] - keys
    visible = (ago >= 0) if window is None else (ago >= 0) & (ago < window)
    if softcap is not None:
        return capped(query, key, value, visible, scale, softcap)
    groups = query.shape[1] // key.shape[1]
    # Repeated by hand: with a mask, CUDA has no kernel for fewer key heads than query heads.
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return out.transpose(1, 2)


def capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor | None,
    scale: float | None,
    softcap: float,
) -> Tensor:
    """[B, S, H, D] where scores go through `softcap * tanh(scores / softcap)`; causal without mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if visible is None:
        visible = torch.ones(
            query.shape[2], key.shape[2], dtype=torch.bool, device=query.device
        ).tril_(key.shape[2] - query.shape[2])
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * factor / softcap)
    # Not -inf: padding may see nothing at all.
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(query.dtype)
    return (weights @ value).transpose(1, 2)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The same in one kernel, which skips what no row sees."""
    mask = layout.kept.get(window)
    if mask is None:
        mask = layout.kept[window] = block_mask(layout, window, query.device)

    run = _compiled_flex() if query.is_cuda else flex_attention
    out = run(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap_by(softcap),
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)


def _cap_by(softcap: float) -> Callable[..., Tensor]:
    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Who sees whom, for `flex_attention`."""
    segments_P = torch.empty(layout.num_tokens, dtype=torch.int32)
    # The segment of a token's prefix: its own where it has none.
    prefixes_P, positions_P = segments_P.clone(), segments_P.clone()
    number = 0
    for family in layout.families:
        prefix_number, prefix_size = number, family.prefix_end - family.start
        for start, end in [(family.start, family.prefix_end), *family.suffixes]:
            before = prefix_size if start > family.start else 0
            segments_P[start:end] = number
            prefixes_P[start:end] = prefix_number
            positions_P[start:end] = torch.arange(before, before + end - start)
            number += 1
    segments_P, prefixes_P, positions_P = (
        one.to(device) for one in (segments_P, prefixes_P, positions_P)
    )

    def visible(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        ago = positions_P[query] - positions_P[key]
        in_row = (segments_P[query] == segments_P[key]) | (prefixes_P[query] == segments_P[key])
        return in_row & (ago >= 0) if window is None else in_row & (ago >= 0) & (ago < window)

    size = layout.num_tokens
    return create_block_mask(visible, None, None, size, size, device=str(device))


@cache
def _compiled_flex() -> Any:
    # Every micro-batch has another number of tokens.
    return torch.compile(flex_attention, dynamic=True)


@cache
def flex_works() -> bool:
    """Whether this machine compiles the kernel, forth and back; tried once."""
    layout = Layout(families=(Family(start=0, prefix_end=100, ends=(180, 256)),))
    probe = torch.randn(1, 2, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        flex(probe, probe, probe, layout, 0.125, None, None).sum().backward()
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises
        _log.warning("attention goes row by row, as flex_attention does not compile: %s", error)
        return False
    return True
