from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM, PreTrainedModel

from learner.head import check_head, token_logprobs
from rollout.model import load_model
from tests.learner.batches import sampler_logprobs
from tests.models import tiny_llama, tiny_qwen2, tiny_qwen3

IDS = [[3, 9, 27, 17, 51, 25], [4, 16, 0, 0, 0, 0]]
MASK = [[0, 1, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0]]


def load(path: Path, write: Callable[[Path], Path]) -> PreTrainedModel:
    return load_model(write(path), "float32")


@pytest.mark.parametrize("write", [tiny_qwen3, tiny_qwen2, tiny_llama])
def test_log_probs_are_those_of_each_row_alone(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    model = load(tmp_path, write)
    tokens = token_logprobs(model, torch.tensor(IDS), torch.tensor(MASK).bool(), temperature=0.7)
    long = sampler_logprobs(model, IDS[0], temperature=0.7)
    short = sampler_logprobs(model, IDS[1][:2], temperature=0.7)
    expected = torch.tensor([long[1], long[3], long[4], long[5], short[1]])
    torch.testing.assert_close(tokens.logprobs_N.detach(), expected, rtol=1e-5, atol=1e-5)


def test_entropy_is_that_of_the_sampling_distribution(tmp_path: Path) -> None:
    model = load(tmp_path, tiny_qwen3)
    ids_BT, mask_BT = torch.tensor([IDS[0]]), torch.tensor([MASK[0]]).bool()
    tokens = token_logprobs(model, ids_BT, mask_BT, temperature=0.7)
    logits_TV = model(input_ids=ids_BT).logits[0, [0, 2, 3, 4]] / 0.7
    expected = torch.distributions.Categorical(logits=logits_TV).entropy()
    torch.testing.assert_close(tokens.entropy_N, expected.detach(), rtol=1e-5, atol=1e-5)
    assert not tokens.entropy_N.requires_grad


def test_chunks_change_neither_values_nor_gradients(tmp_path: Path) -> None:
    model = load(tmp_path, tiny_qwen2)
    ids_BT, mask_BT = torch.tensor(IDS), torch.tensor(MASK).bool()
    results = []
    # 64 logits per token: two tokens at once, and all five.
    for chunk_logits in (128, 10_000):
        model.zero_grad()
        tokens = token_logprobs(model, ids_BT, mask_BT, temperature=1.0, chunk_logits=chunk_logits)
        tokens.logprobs_N.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((tokens.logprobs_N.detach(), tokens.entropy_N, gradients))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_logits", [128, 10_000])
def test_entropy_has_its_gradient_where_that_is_asked(tmp_path: Path, chunk_logits: int) -> None:
    model = load(tmp_path, tiny_qwen3)
    ids_BT, mask_BT = torch.tensor([IDS[0]]), torch.tensor([MASK[0]]).bool()
    logits_TV = model(input_ids=ids_BT).logits[0, [0, 2, 3, 4]] / 0.7
    torch.distributions.Categorical(logits=logits_TV).entropy().sum().backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    tokens = token_logprobs(
        model, ids_BT, mask_BT, temperature=0.7, chunk_logits=chunk_logits, entropy_grad=True
    )
    tokens.entropy_N.sum().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


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
    check_head(load(tmp_path, tiny_qwen3))
