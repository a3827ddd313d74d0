"""The ways to compute attention over packed rows give the same, and its gradient too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from learner import attention, kernels
from learner.layout import Family, Layout

Given = tuple[Tensor, Tensor, Tensor]

LAYOUT = Layout(
    families=(
        Family(start=0, prefix_end=3),
        Family(start=3, prefix_end=12, ends=(13, 19, 24)),
        Family(start=24, prefix_end=25),
        Family(start=25, prefix_end=35, ends=(36, 41)),
    )
)
NUM_TOKENS, SIZE = 41, 16
SCALE = 0.3


def visible(window: int | None) -> Tensor:
    """[P, P] who sees whom, counted out row by row."""
    seen = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for family in LAYOUT.families:
        prefix = list(range(family.start, family.prefix_end))
        for row in [prefix, *([*prefix, *range(a, b)] for a, b in family.suffixes)]:
            for at, query in enumerate(row):
                first = 0 if window is None else max(0, at - window + 1)
                seen[query, row[first : at + 1]] = True
    return seen


def expected(
    query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * SCALE
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible(window), float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


def tensors(heads: int, kv_heads: int) -> Given:
    torch.manual_seed(0)
    shapes = [(1, n, NUM_TOKENS, SIZE) for n in (heads, kv_heads, kv_heads)]
    # As a projection gives them: tokens first, then heads.
    query, key, value = (
        torch.randn(b, tokens, n, size, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for b, n, tokens, size in shapes
    )
    return query, key, value


def check(compute: Callable[..., Tensor], given: Given, wanted: Tensor) -> None:
    weights = torch.randn_like(wanted)
    found = compute(*given)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), given),
        torch.autograd.grad((wanted * weights).sum(), given),
    )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_blocks_are_exact(heads: int, kv_heads: int) -> None:
    given = tensors(heads, kv_heads)
    check(
        lambda query, key, value: kernels.Blocks.apply(query, key, value, LAYOUT, SCALE),
        given,
        expected(*given, None, None),
    )


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_row_by_row_is_exact(kv_heads: int, window: int | None, softcap: float | None) -> None:
    given = tensors(4, kv_heads)
    check(
        lambda query, key, value: kernels.row_by_row(
            query, key, value, LAYOUT, SCALE, window, softcap
        ),
        given,
        expected(*given, window, softcap),
    )


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_one_kernel_is_exact(kv_heads: int, window: int | None, softcap: float | None) -> None:
    # On a CPU it has no gradient.
    query, key, value = (one.detach() for one in tensors(4, kv_heads))
    found = kernels.flex(
        query, key, value, Layout(families=LAYOUT.families), SCALE, window, softcap
    )
    torch.testing.assert_close(found, expected(query, key, value, window, softcap))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_of_a_gpu_is_exact(window: int | None, softcap: float | None) -> None:
    assert kernels.flex_works()
    query, key, value = (one.detach().float().cuda().requires_grad_() for one in tensors(4, 2))
    given = query, key, value
    layout = Layout(families=LAYOUT.families)
    wanted = expected(query.cpu(), key.cpu(), value.cpu(), window, softcap)
    found = kernels.flex(query, key, value, layout, SCALE, window, softcap)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-2, atol=1e-2)
    weights = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad((found.cpu() * weights).sum(), given),
        torch.autograd.grad((wanted * weights).sum(), given),
        rtol=1e-2,
        atol=1e-2,
    )


@pytest.mark.parametrize("window", [12, 14, 15, 16])
def test_a_window_is_left_out_only_where_no_row_is_longer(window: int) -> None:
    assert max(family.longest for family in LAYOUT.families) == 15
    query, key, value = tensors(4, 2)
    found, _ = attention.attend(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        layout=LAYOUT,
        scaling=SCALE,
        sliding_window=window,
    )
    torch.testing.assert_close(found, expected(query, key, value, window, None))


def test_dropout_is_refused() -> None:
    query, key, value = tensors(4, 4)
    with pytest.raises(ValueError, match="without dropout"):
        attention.attend(torch.nn.Module(), query, key, value, None, layout=LAYOUT, dropout=0.1)
