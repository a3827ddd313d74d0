"""`learner.sft`: what is imitated, that it is reproducible, and what is written."""

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3ForCausalLM

from configs.load import ConfigError, convert
from configs.sft import Message, MessagesRow, PolicyRecipe, SftRecipe, TraceRecipe
from envpool.envs import basics
from learner import cli, sft
from learner.attention import use_packing
from learner.demonstrations import batches, encode, held_out
from learner.policy_files import recipe_hash, rows_hash
from learner.tiny_policy import make_model, make_tokenizer
from rollout.model import load_model
from rollout.tokens import ChatTokens
from rollout.types import Row, Span
from synth.traces import generate

_TRACES = TraceRecipe(envs=["sum_list", "find_max"], count=48)
_SMALL = PolicyRecipe(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocabulary=512)


@pytest.fixture(scope="module")
def rows() -> list[MessagesRow]:
    return generate(_TRACES)


def recipe(out: Path, *, seed: int = 0, overwrite: bool = False, base: str = "") -> SftRecipe:
    return SftRecipe(
        out=str(out),
        overwrite=overwrite,
        base=base,
        seed=seed,
        batch_rows=8,
        warmup_steps=2,
        lr=1e-2,
        traces=_TRACES,
        policy=_SMALL,
    )


def policy() -> tuple[Qwen3ForCausalLM, ChatTokens]:
    torch.manual_seed(0)
    tokenizer = make_tokenizer(["Sum all numbers."], 512)
    return make_model(_SMALL, tokenizer), ChatTokens(tokenizer)


def test_mask_covers_replies_and_their_end(rows: list[MessagesRow]) -> None:
    _, tokens = policy()
    for demonstration in rows[:8]:
        [row] = encode(demonstration, tokens)
        replies = [m.content for m in demonstration.messages if m.role == "assistant"]
        sampled = tokens.decode(row.token_ids[row.mask == 1].tolist())
        assert sampled == "".join(reply + "<|im_end|>" for reply in replies)


def test_messages_are_refused_when_roles_are_out_of_turn() -> None:
    _, tokens = policy()
    messages = [Message(role="user", content="a"), Message(role="tool", content="b")]
    with pytest.raises(ConfigError, match=r"roles are \['user', 'tool'\]"):
        encode(MessagesRow(env="e", messages=messages, tools=[], reward=0.0), tokens)


def test_loss_is_the_mean_over_masked_tokens_of_all_rows() -> None:
    torch.manual_seed(0)
    model = make_model(_SMALL, make_tokenizer(["a"], 512))
    # Rows of unlike length and mask: padding must not count, nor may rows weigh alike.
    rows = [
        Row.pack([5, 6, 7, 8], [0] * 4, [0, 1, 0, 1], [_span(1, 2), _span(3, 4)]),
        Row.pack([9, 10], [0] * 2, [0, 1], [_span(1, 2)]),
    ]
    expected = []
    for row in rows:
        ids = torch.from_numpy(row.token_ids.astype("int64"))[None]
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        expected += [-logprobs[i - 1, ids[0, i]] for i in range(1, ids.shape[1]) if row.mask[i]]
    use_packing(model)
    # One micro-batch, and one of each row: what is computed at once must not matter.
    for budget in (100, 1):
        cut = msgspec.structs.replace(recipe(Path("out")), micro_batch_tokens=budget)
        parts = list(sft.loss_parts(model, rows, cut))
        assert len(parts) == (1 if budget == 100 else 2)
        torch.testing.assert_close(torch.stack(parts).sum(), torch.stack(expected).mean())


def test_weights_are_the_same_bytes_when_trained_again(
    rows: list[MessagesRow], tmp_path: Path
) -> None:
    names = ("one", "two", "other")
    for name, seed in zip(names, (0, 0, 1), strict=True):
        sft.train(rows, recipe(tmp_path / name, seed=seed))
    one, two, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert one == two
    assert one != other
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_loss_falls_and_the_written_policy_is_the_trained_one(
    rows: list[MessagesRow], tmp_path: Path
) -> None:
    sft.train(rows, recipe(tmp_path / "out"))
    model, tokens = load_model(tmp_path / "out", "float32"), ChatTokens.load(tmp_path / "out")
    encoded = [row for demonstration in rows for row in encode(demonstration, tokens)]
    torch.manual_seed(0)
    untrained = make_model(_SMALL, tokens.tokenizer)
    for one in (model, untrained):
        use_packing(one)
    made = recipe(tmp_path)
    before, after = (sft.mean_loss(one, encoded, made) for one in (untrained, model))
    assert after < 0.8 * before
    assert isinstance(model, Qwen3ForCausalLM)
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


def test_training_goes_on_from_a_base_model(rows: list[MessagesRow], tmp_path: Path) -> None:
    sft.train(rows, recipe(tmp_path / "base"))
    sft.train(rows, recipe(tmp_path / "more", base=str(tmp_path / "base")))
    losses = []
    for name in ("base", "more"):
        model, tokens = load_model(tmp_path / name, "float32"), ChatTokens.load(tmp_path / name)
        use_packing(model)
        encoded = [row for demonstration in rows for row in encode(demonstration, tokens)]
        losses.append(sft.mean_loss(model, encoded, recipe(tmp_path)))
    assert losses[1] < losses[0]


def test_a_bfloat16_model_is_trained_and_stays_one(rows: list[MessagesRow], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a new policy is trained in float32"):
        convert({"out": "x", "dtype": "bfloat16"}, SftRecipe)
    sft.train(rows, recipe(tmp_path / "base"))
    small = msgspec.structs.replace(
        recipe(tmp_path / "more", base=str(tmp_path / "base")),
        dtype="bfloat16",
        lr=2e-4,
        epochs=4,
        activation_checkpointing=True,
        micro_batch_tokens=300,
    )
    sft.train(rows, small)
    model, tokens = load_model(tmp_path / "base", "float32"), ChatTokens.load(tmp_path / "base")
    trained = load_model(tmp_path / "more", "float32")
    with safe_open(tmp_path / "more" / "model.safetensors", framework="pt") as opened:
        assert opened.get_tensor("model.embed_tokens.weight").dtype == torch.bfloat16
    encoded = [row for demonstration in rows for row in encode(demonstration, tokens)]
    losses = []
    for one in (model, trained):
        use_packing(one)
        losses.append(sft.mean_loss(one, encoded, recipe(tmp_path)))
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("clean", "told"), [(0.0, None), (0.5, 5), (1.0, None)])
def test_the_step_at_which_mistakes_begin_is_told(
    rows: list[MessagesRow],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    clean: float,
    told: int | None,
) -> None:
    caplog.set_level(logging.INFO)
    traces = msgspec.structs.replace(_TRACES, count=16, clean=clean)
    made = msgspec.structs.replace(recipe(tmp_path / "out"), batch_rows=2, traces=traces)
    sft.train(rows[:16], made)
    said = [record.message for record in caplog.records if "sloppy" in record.message]
    assert [line.split(":")[0] for line in said] == ([f"sft step {told}"] if told else [])


def test_what_is_held_out_is_not_trained_on(rows: list[MessagesRow], tmp_path: Path) -> None:
    model, tokens = policy()
    given = [msgspec.structs.replace(row, task=str(i // 2)) for i, row in enumerate(rows)]
    chosen = msgspec.structs.replace(recipe(tmp_path / "out"), held_out=0.25)
    lessons = sft._lessons(given, chosen, model, tokens)
    apart = held_out(given, chosen)
    assert sum(apart) == len(rows) / 4
    ids = [encode(row, tokens)[0].token_ids_bytes for row in given]
    trained = [one for one, is_apart in zip(ids, apart, strict=True) if not is_apart]
    assert [row.token_ids_bytes for row in lessons.rows] == trained
    kept = [one for one, is_apart in zip(ids, apart, strict=True) if is_apart]
    assert [row.token_ids_bytes for row in lessons.held_out] == kept


def test_each_pass_has_every_row_once_in_an_order_of_its_own(rows: list[MessagesRow]) -> None:
    _, tokens = policy()
    encoded = [encode(row, tokens)[0] for row in rows]
    chosen = msgspec.structs.replace(recipe(Path("out")), epochs=3)
    flat = [id(row) for batch in batches(encoded, chosen) for row in batch]
    size = len(encoded)
    passes = [flat[start : start + size] for start in range(0, len(flat), size)]
    assert len(passes) == 3 and len({tuple(one) for one in passes}) == 3
    assert all(sorted(one) == sorted(map(id, encoded)) for one in passes)


def test_rate_rises_over_the_warm_up_and_falls_to_nothing_over_the_rest() -> None:
    rates = [sft._schedule(step, 2, 10) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    # Half way between the end of the warm-up and the last step.
    assert rates[5] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[2] < 1.0
    assert rates[-1] == pytest.approx(0.0)


def test_weights_name_their_recipe(rows: list[MessagesRow], tmp_path: Path) -> None:
    made = recipe(tmp_path / "out")
    sft.train(rows, made)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        metadata = opened.metadata()
    elsewhere = msgspec.structs.replace(made, out="elsewhere", overwrite=True)
    assert metadata["recipe"] == recipe_hash(elsewhere)
    assert metadata["recipe"] != recipe_hash(msgspec.structs.replace(made, seed=9))
    assert metadata["traces"] == rows_hash(rows)


def test_output_is_refused_when_it_holds_something(rows: list[MessagesRow], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty: choose another, or set overwrite=true"):
        sft.train(rows, recipe(tmp_path))
    sft.train(rows, recipe(tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").exists()


def test_command_trains_on_the_traces_of_its_recipe(
    rows: list[MessagesRow], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked: list[TraceRecipe] = []

    def given(recipe: SftRecipe) -> Sequence[MessagesRow]:
        asked.append(recipe.traces)
        return rows

    arguments = [f"out={tmp_path / 'out'}", "max_steps=1", "policy.hidden=32", "policy.layers=1"]
    assert cli.sft([*arguments, "traces.count=7"], given) == 0
    assert [traces.count for traces in asked] == [7]
    shown = {name for name in asked[0].envs if name.startswith("basics/")}
    assert shown == {f"basics/{name}" for name in set(basics) - {"price_total"}}
    assert "price_total" not in asked[0].envs and "walk_steps" in asked[0].envs
    opening, closing = caplog.text.split("sft: 1 steps")
    assert str(tmp_path / "out") in opening and "tiny_policy/recipe.toml" in opening
    assert f"launch.py model.path={tmp_path / 'out'}" in closing
    # A mistake is told before any trace is made.
    with pytest.raises(ConfigError, match="overwrite=true"):
        cli.sft(arguments, given)
    with pytest.raises(ConfigError, match="lrr is not known; did you mean lr"):
        cli.sft([*arguments, "lrr=1"], given)
    assert len(asked) == 1


def _span(start: int, end: int) -> Span:
    return Span(version=0, start=start, end=end)
