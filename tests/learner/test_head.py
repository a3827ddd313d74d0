from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from learner.attention import use_packing
from learner.head import check_head, output_head, token_logprobs
from learner.layout import pack_rows
from rollout.model import load_model
from tests.learner.batches import make_row
from tests.models import tiny_gemma2, tiny_qwen2, tiny_qwen3

PACKED = pack_rows(
    [
        [make_row([3, 9, 27, 17, 51, 25], [0.0] * 6, [0, 1, 0, 1, 1, 1])],
        [make_row([4, 16], [0.0] * 2, [0, 1])],
    ]
)


@pytest.mark.parametrize("write", [tiny_qwen2, tiny_qwen3, tiny_gemma2])
def test_chunks_change_neither_values_nor_gradients(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    model = load_model(write(tmp_path), "float32")
    use_packing(model)
    results = []
    # 64 logits per token: two tokens at once, and all five.
    for chunk_logits in (128, 10_000):
        model.zero_grad()
        tokens = token_logprobs(model, PACKED, temperature=0.7, chunk_logits=chunk_logits)
        (tokens.logprobs_N.sum() + 0.3 * tokens.entropy_N.square().sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((tokens.logprobs_N.detach(), tokens.entropy_N.detach(), gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_a_bias_of_the_head_counts_and_learns(tmp_path: Path) -> None:
    model = load_model(tiny_qwen3(tmp_path), "float32")
    use_packing(model)
    head = output_head(model)
    head.bias = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 64))
    found = token_logprobs(model, PACKED, temperature=0.7, chunk_logits=128)
    found.logprobs_N.sum().backward()
    gradient, head.bias.grad = head.bias.grad, None
    logits = model(input_ids=torch.tensor([[3, 9, 27, 17, 51, 25]])).logits[0, [0, 2, 3, 4]]
    expected = (logits / 0.7).log_softmax(-1)[range(4), [9, 17, 51, 25]]
    torch.testing.assert_close(found.logprobs_N[:4], expected, rtol=1e-5, atol=1e-5)
    other = model(input_ids=torch.tensor([[4, 16]])).logits[0, 0]
    (expected.sum() + (other / 0.7).log_softmax(-1)[16]).backward()
    torch.testing.assert_close(gradient, head.bias.grad, rtol=1e-4, atol=1e-5)


def test_logits_of_all_tokens_never_exist_at_once(tmp_path: Path) -> None:
    model = load_model(tiny_qwen3(tmp_path, vocab_size=5000), "float32")
    use_packing(model)
    largest = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        if tensor.data_ptr() != model.lm_head.weight.data_ptr():
            largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        token_logprobs(model, PACKED, temperature=1.0, chunk_logits=10_000)
    assert largest < 5000


def test_a_model_that_changes_its_logits_is_refused() -> None:
    config = GraniteConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=1.0,
        logits_scaling=8.0,
    )
    with pytest.raises(ValueError, match="changes its logits"):
        check_head(GraniteForCausalLM(config))


def test_models_with_a_plain_head_pass_the_check(tmp_path: Path) -> None:
    check_head(load_model(tiny_qwen3(tmp_path), "float32"))
