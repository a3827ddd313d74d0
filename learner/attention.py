"""Attention of the learner: rows packed without padding, shared beginnings computed once.

`use_packing` gives a model this attention for good. A forward pass with the keyword `layout` is
then over the flat sequence [1, P] that the layout describes; one without it is what it was.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from learner.kernels import Blocks, capped, flex, flex_works, row_by_row
from learner.layout import Family, Layout, Packed

# Name under which transformers finds `attend`.
ATTENTION = "millrace_rows"

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}

# Largest difference of hidden states that rounding explains, relative to their size.
_TOLERANCE, _TOLERANCE_BFLOAT16 = 1e-3, 0.1


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
            return capped(query, key, value, attention_mask, scaling, softcap), None
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
    if query.is_cuda and flex_works():
        return flex(query, key, value, layout, scale, window, softcap), None
    is_plain = window is None and softcap is None and key.shape[-1] == value.shape[-1]
    if query.device.type == "cpu" and is_plain:
        return Blocks.apply(query, key, value, layout, scale), None
    return row_by_row(query, key, value, layout, scale, window, softcap), None


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


# A compiler would make a program of its own for every layout.
AttentionInterface.register(ATTENTION, torch.compiler.disable(attend))
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
