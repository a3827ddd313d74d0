"""Attention of the learner: rows packed without padding, shared beginnings computed once.

`use_packing` gives a model this attention for good. A forward pass with the keyword `layout` is
then over the flat sequence [1, P] that the layout describes; one without it is what it was. Three
ways compute the same: `_Blocks` (CPU, full attention), one kernel call for each family and suffix;
`_flex` (CUDA), all rows in one compiled kernel; `_row_by_row`, which needs nothing but matrix
products and takes what the others do not: sliding windows on a CPU, and capped scores there.

H query heads, K key heads, D head size, P tokens, S tokens of a block.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from learner.layout import Family, Layout, Packed

_log = logging.getLogger(__name__)

# Name under which transformers finds `attend`.
ATTENTION = "millrace_rows"

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}

# Largest difference of hidden states that rounding explains, relative to their size.
_TOLERANCE, _TOLERANCE_BFLOAT16 = 1e-3, 0.1

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def use_packing(model: PreTrainedModel) -> None:
    """Switch `model` to `ATTENTION`; raises ValueError when that changes what it computes."""
    config = model.config.get_text_config()
    unknown = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        raise ValueError(
            f"{type(model).__name__} has layers of {sorted(unknown)}, and the learner computes full "
            "and sliding attention only: use another model in model.path"
        )
    # transformers' own sdpa leaves the cap out, which the model was trained with.
    if getattr(config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    rows = _probe_rows(config.vocab_size, model.device)
    with torch.no_grad():
        expected = [_hidden(model, row[None]) for row in rows]
        model.set_attn_implementation(ATTENTION)
        found = _packed_hidden(model, rows)
    tolerance = _TOLERANCE_BFLOAT16 if model.dtype == torch.bfloat16 else _TOLERANCE
    for one, other in zip(expected, found, strict=True):
        difference = float((one - other).abs().max() / one.abs().max())
        # `not <=` also refuses NaN.
        if not difference <= tolerance:
            raise ValueError(
                f"{type(model).__name__} computes differently when rows are packed (hidden states "
                f"differ by {difference:.2g}): use another model in model.path"
            )


def hidden_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """[P, D] last hidden states of a model that uses packing."""
    # A mask of four dimensions is passed on as it is; without one transformers builds [P, P].
    no_mask = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=packed.ids_P.device)
    out = model.base_model(
        input_ids=packed.ids_P[None],
        position_ids=packed.positions_P[None],
        attention_mask=no_mask,
        use_cache=False,
        layout=packed.layout,
    )
    return out.last_hidden_state[0]


# A compiler would make a program of its own for every layout.
@torch.compiler.disable
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers calls it; returns [1, P, H, D].

    query [1, H, P, D], key and value [1, K, P, D].
    """
    if layout is None:
        if softcap is not None:
            return _capped(query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    if dropout:
        raise ValueError("packed rows are computed without dropout: put the model in eval mode")
    assert layout.num_tokens == query.shape[2], "the layout is of other tokens"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window
    if window is not None and all(family.longest <= window for family in layout.families):
        window = None
    if query.is_cuda and _flex_works():
        return _flex(query, key, value, layout, scale, window, softcap), None
    is_plain = window is None and softcap is None and key.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and is_plain:
        return _Blocks.apply(query, key, value, layout, scale), None
    return _row_by_row(query, key, value, layout, scale, window, softcap), None


class _Blocks(torch.autograd.Function):
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


def _row_by_row(
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
        return _capped(query, key, value, visible, scale, softcap)
    groups = query.shape[1] // key.shape[1]
    # Repeated by hand: with a mask, CUDA has no kernel for fewer key heads than query heads.
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scale)
    return out.transpose(1, 2)


def _capped(
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


def _flex(
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
def _flex_works() -> bool:
    """Whether this machine compiles the kernel, forth and back; tried once."""
    layout = Layout(families=(Family(start=0, prefix_end=100, ends=(180, 256)),))
    probe = torch.randn(1, 2, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    try:
        _flex(probe, probe, probe, layout, 0.125, None, None).sum().backward()
    except Exception as error:  # noqa: BLE001  # whatever a compiler raises
        _log.warning("attention goes row by row, as flex_attention does not compile: %s", error)
        return False
    return True


def _probe_rows(vocab_size: int, device: torch.device) -> list[Tensor]:
    """Rows of which the last two begin alike."""
    ids = torch.arange(1, 40, device=device) % vocab_size
    return [ids[:5], ids[5:20], torch.cat([ids[5:15], ids[20:27]])]


def _hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()


def _packed_hidden(model: PreTrainedModel, rows: list[Tensor]) -> list[Tensor]:
    """Hidden states of the rows of the probe, from one packed pass."""
    alone, one, other = rows
    shared, a = 10, len(alone)
    ids = torch.cat([alone, one, other[shared:]])
    positions = torch.cat(
        [torch.arange(n, device=ids.device) for n in (a, len(one))]
        + [torch.arange(shared, len(other), device=ids.device)]
    )
    family = Family(start=a, prefix_end=a + shared, ends=(a + len(one), len(ids)))
    nothing = ids[:0]
    hidden = hidden_states(
        model,
        Packed(
            ids_P=ids,
            positions_P=positions,
            layout=Layout(families=(Family(start=0, prefix_end=a), family)),
            sources_N=nothing,
            targets_N=nothing,
            rows_N=nothing,
        ),
    ).float()
    prefix, rest = hidden[a : a + shared], hidden[a + len(one) :]
    return [hidden[:a], hidden[a : a + len(one)], torch.cat([prefix, rest])]


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
