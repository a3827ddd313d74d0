"""Packed rows, with what they share computed once, are what each row is alone in transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PretrainedConfig, PreTrainedModel

from learner.attention import use_packing
from learner.head import check_head, token_logprobs
from learner.layers import compile_layers, recompute_layers
from learner.layout import pack_rows
from rollout.model import load_model
from rollout.types import Row
from tests.learner.batches import make_row
from tests.models import (
    tiny_gemma2,
    tiny_gemma3,
    tiny_llama,
    tiny_llama3,
    tiny_mistral,
    tiny_qwen2,
    tiny_qwen3,
)

MODELS = [
    tiny_qwen2,
    tiny_qwen3,
    tiny_llama,
    tiny_llama3,
    tiny_mistral,
    tiny_gemma2,
    tiny_gemma3,
]
Write = Callable[[Path], Path]


def families() -> list[list[Row]]:
    """A group whose members begin alike, of which they train some tokens; one row of a token to
    train; and two rows that begin alike but for their second token."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 64, (count,), generator=generator).tolist()

    def row(tokens: list[int]) -> Row:
        mask = torch.randint(0, 2, (len(tokens),), generator=generator).tolist()
        mask[0], mask[-1] = 0, 1
        return make_row(tokens, [0.0] * len(tokens), mask)

    prompt, other = ids(14), ids(12)
    group = [row([*prompt, first, *ids(count)]) for first, count in ((1, 0), (2, 22), (3, 5))]
    # The first token after the prefix is trained: the prefix's last one predicts it.
    assert group[0].mask[14] == 1
    apart = [row([other[0], second, *other[2:], *ids(3)]) for second in (5, 6)]
    return [group, [row(ids(2))], apart]


def alone(model: PreTrainedModel, row: Row, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the masked tokens of a row, from the logits of an ordinary pass."""
    ids = torch.tensor(row.token_ids.tolist())
    logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
    logprobs = (logits / temperature).log_softmax(-1)
    mask = torch.tensor(row.mask.tolist()).bool()[1:]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, ids[1:, None])[mask, 0], entropy[mask]


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found


def load(
    write: Write, path: Path, dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model with transformers' own attention, and packed."""
    model_path = write(path)
    plain, packed = (load_model(model_path, dtype) for _ in range(2))
    if plain.config.model_type == "gemma2":
        # transformers' other attention leaves the cap of the scores out.
        plain.set_attn_implementation("eager")
    use_packing(packed)
    check_head(packed)
    return plain, packed


def compared(
    plain: PreTrainedModel, packed: PreTrainedModel, groups: Sequence[Sequence[Row]]
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of packed and plain log-probs, entropies and gradients."""
    tokens = token_logprobs(packed, pack_rows(groups), temperature=0.7)
    expected = [alone(plain, row, 0.7) for group in groups for row in group]
    logprobs, entropy = (torch.cat(parts) for parts in zip(*expected, strict=True))
    generator = torch.Generator().manual_seed(1)
    weights, more = torch.randn(2, len(logprobs), generator=generator).to(logprobs.dtype)
    (tokens.logprobs_N @ weights + tokens.entropy_N @ more).backward()
    (logprobs @ weights + entropy @ more).backward()
    one, other = gradients(packed), gradients(plain)
    return [
        (tokens.logprobs_N.detach(), logprobs.detach()),
        (tokens.entropy_N.detach(), entropy.detach()),
        *((one[name], other[name]) for name in one),
    ]


def assert_same(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """But for rounding in float32."""
    for found, expected in pairs:
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("write", MODELS)
def test_log_probs_entropies_and_gradients_are_those_of_rows_alone(
    tmp_path: Path, write: Write
) -> None:
    plain, packed = load(write, tmp_path)
    assert_same(compared(plain, packed, families()))


@pytest.mark.parametrize("write", MODELS)
def test_in_bfloat16_packing_is_as_near_to_float32_as_rows_alone_are(
    tmp_path: Path, write: Write
) -> None:
    exact, _ = load(write, tmp_path)
    plain, packed = load(write, tmp_path, "bfloat16")
    groups = families()
    with torch.no_grad():
        found = token_logprobs(packed, pack_rows(groups), temperature=1.0).logprobs_N
        rows = [row for group in groups for row in group]
        alone_N, exact_N = (
            torch.cat([alone(model, row, 1.0)[0].float() for row in rows])
            for model in (plain, exact)
        )
    noise = (alone_N - exact_N).abs().mean()
    assert (found - exact_N).abs().mean() < 1.5 * noise + 1e-3


@pytest.mark.parametrize("write", [tiny_qwen2, tiny_gemma2])
def test_layers_computed_again_give_the_same_gradient(tmp_path: Path, write: Write) -> None:
    plain, packed = load(write, tmp_path)
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    packed_rows = pack_rows(families())
    sizes = []
    for is_recomputed in (False, True):
        if is_recomputed:
            recompute_layers(packed)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            token_logprobs(packed, packed_rows, temperature=1.0)
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 2
    assert_same(compared(plain, packed, families()))


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.filterwarnings("ignore")  # a compiler's own
@pytest.mark.parametrize("is_recomputed", [False, True])
def test_compiled_layers_give_the_same_gradient(tmp_path: Path, is_recomputed: bool) -> None:
    plain, packed = load(tiny_qwen3, tmp_path)
    torch.compiler.reset()  # what another test compiled is compiled once
    counters.clear()
    compile_layers(packed)
    if is_recomputed:
        recompute_layers(packed)
    groups = families()
    assert_same(compared(plain, packed, groups[:1]))
    for model in (plain, packed):
        model.zero_grad()
    assert counters["stats"]["unique_graphs"] > 1
    # Another layout is no other program.
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(compared(plain, packed, groups))


def test_an_ordinary_pass_is_what_it_was(tmp_path: Path) -> None:
    ids = torch.arange(30)[None] % 64
    # The first tokens of the second row are padding.
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :6] = 0
    for write in (tiny_gemma2, tiny_gemma3):
        plain, packed = load(write, tmp_path / write.__name__)
        with torch.no_grad():
            for arguments in ({}, {"attention_mask": mask}):
                one, other = (
                    model(input_ids=ids.expand(2, -1), **arguments).logits[:, 6:]
                    for model in (plain, packed)
                )
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_attention_that_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny_qwen3(tmp_path), "float32")
    config: PretrainedConfig = model.config
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ValueError, match="chunked_attention"):
        use_packing(model)


def test_a_model_that_computes_otherwise_when_packed_is_refused(tmp_path: Path) -> None:
    model = load_model(tiny_qwen3(tmp_path), "float32")
    rotary: Any = model.base_model.rotary_emb
    whole = rotary.forward
    # Positions of its own: it does not take those it is given.
    rotary.forward = lambda hidden, positions: whole(hidden, torch.arange(positions.shape[1])[None])
    with pytest.raises(ValueError, match="differently when rows are packed"):
        use_packing(model)
