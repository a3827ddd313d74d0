"""The shipped policy: that it is the one its recipe makes, and starts where RL can raise it."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from configs.load import convert, find, read
from configs.schema import PoolSection
from configs.sft import SftRecipe
from envpool.envs import basics
from envpool.folder import is_path
from envpool.source import PoolSource
from learner.policy_files import recipe_hash
from rollout.model import load_model
from rollout.tokens import ChatTokens
from tests.play import play

# What it is trained on: in the default run, and in the tests' own.
_RL_ENVS = {
    "tiny_pool/pool/train": ["sum_list", "find_max", "sum_even", "find_place", "walk_steps"],
    "envpool.envs:basics": ["sum_list", "find_max", "count_even", "guess_number", "walk_list"],
}


@pytest.fixture(scope="module")
def path() -> Path:
    return find("tiny_policy/policy")


def test_plain_transformers_loads_it(path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(path)
    assert isinstance(model, Qwen3ForCausalLM)
    config = model.config
    # vLLM's CPU attention takes no smaller head, and keeps a stale tied head on weight updates.
    assert (config.head_dim, config.tie_word_embeddings) == (32, False)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == config.vocab_size
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == config.eos_token_id
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == config.eos_token_id
    assert config.pad_token_id == tokenizer.pad_token_id


def test_it_was_made_by_the_shipped_recipe(path: Path) -> None:
    recipe = convert(read(["tiny_policy/recipe.toml"]), SftRecipe)
    with safe_open(path / "model.safetensors", framework="pt") as opened:
        assert opened.metadata()["recipe"] == recipe_hash(recipe), "make it again, or restore it"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_weights_belong_with_the_files_beside_them(path: Path, name: str) -> None:
    with safe_open(path / "model.safetensors", framework="pt") as opened:
        expected = opened.metadata()[name]
    assert hashlib.sha256((path / name).read_bytes()).hexdigest() == expected


def test_conversations_are_short(path: Path) -> None:
    tokens = ChatTokens.load(path)
    assert tokens.template.is_append_only
    for env_id, env in basics.items():
        if env_id == "price_total":
            continue
        prompt = tokens.prompt_ids("Find the number from 10 to 20.", env.tools())
        assert len(prompt) <= 30
        for tool in env.tools():
            names = tool["function"]["parameters"]["properties"]
            arguments = ", ".join(f'"{name}": 99' for name in names)
            call = f'{{"name": "{tool["function"]["name"]}", "arguments": {{{arguments}}}}}'
            assert len(tokens.reply_ids(f"<tool_call>\n{call}\n</tool_call>")) <= 7
    for number in range(100):
        assert len(tokens.reply_ids(str(number))) == 2  # the number and the end
        assert len(tokens.delta_ids(str(number), has_end=True)) == 3


@pytest.mark.parametrize(
    ("pool", "temperature", "lowest", "highest"),
    [
        ("tiny_pool/pool/train", 1.0, 0.1, 0.4),
        ("tiny_pool/pool/train", 0.0, 0.1, 0.6),
        ("envpool.envs:basics", 1.0, 0.3, 0.6),
        ("envpool.envs:basics", 0.0, 0.4, 0.85),
    ],
)
def test_success_on_unseen_configurations(
    path: Path, pool: str, temperature: float, lowest: float, highest: float
) -> None:
    folder = str(find(pool)) if is_path(pool) else ""
    source = PoolSource.load("shown", PoolSection(source=pool, trusted=True), folder=folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    played = play(
        load_model(path, "float32"),
        ChatTokens.load(path),
        source,
        _RL_ENVS[pool],
        count=100,
        temperature=temperature,
    )
    torch.set_num_threads(threads)
    assert lowest <= sum(episode.reward for episode in played) / len(played) <= highest
