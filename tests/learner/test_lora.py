"""Adapters: what they train, what leaves the learner, and that peft agrees."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.load import ConfigError, load
from configs.lora import LoraSection
from configs.schema import LearnerSection
from configs.sft import PolicyRecipe, SftRecipe, TraceRecipe
from learner import sft
from learner.attention import use_packing
from learner.demonstrations import encode_all
from learner.head import token_logprobs
from learner.layers import compile_layers, recompute_layers
from learner.layout import pack_rows
from learner.lora import adapt, adapter_of, adapter_tensors, merge, switched_off
from learner.overlap import Overlapping
from learner.policy_files import recipe_hash
from learner.publish import Publisher
from learner.shard import whole_weights
from learner.trainer import Trainer
from rollout.adapters import AdapterFolder
from rollout.engines import check_engine
from rollout.model import load_model
from rollout.run import check
from rollout.shapes import shapes_of
from rollout.tokens import ChatTokens
from rollout.types import TrainBatch
from rollout.weights import Manifest, read_tensors
from synth.traces import generate
from tests.engines import needs_vllm
from tests.learner.batches import loss_section, make_batch, sampled_group
from tests.learner.test_packed_models import alone, families
from tests.models import plain_logprobs, tiny_llama3, tiny_qwen2, tiny_qwen3
from tests.recipes import BASICS

Write = Callable[[Path], Path]
MODELS = pytest.mark.parametrize("write", [tiny_qwen3, tiny_llama3, tiny_qwen2])

SECTION = LoraSection(rank=3, alpha=5)
SOME = LoraSection(rank=2, alpha=5, targets=["q_proj", "down_proj"])


def stir(model: torch.nn.Module, seed: int = 0) -> None:
    """Make every adapter large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def adapted_model(
    path: Path, section: LoraSection = SECTION, dtype: str = "float32"
) -> PreTrainedModel:
    model = load_model(path, dtype)
    adapt(model, section, base=path, seed=0)
    return model


def by_peft(path: Path, model: PreTrainedModel, section: LoraSection = SECTION) -> PeftModel:
    """The model in `path` wrapped by peft, with the adapters of `model`."""
    targets = section.targets or "all-linear"
    config = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=targets)
    wrapped = get_peft_model(load_model(path, "float32"), config)
    assert isinstance(wrapped, PeftModel)
    named = dict(wrapped.named_parameters())
    ours = adapter_tensors(model)
    assert sum(parameter.requires_grad for parameter in named.values()) == len(ours)
    with torch.no_grad():
        for name, tensor in ours.items():
            named[name.replace(".weight", ".default.weight")].copy_(tensor)
    return wrapped


@pytest.mark.parametrize("section", [SECTION, SOME], ids=["all", "some"])
@MODELS
def test_the_gradient_of_packed_rows_is_that_of_plain_rows_in_peft(
    tmp_path: Path, write: Write, section: LoraSection
) -> None:
    path = write(tmp_path / "model")
    model = adapted_model(path, section)
    stir(model)
    plain = by_peft(path, model, section)
    use_packing(model)
    recompute_layers(model)
    groups = families()
    found = token_logprobs(model, pack_rows(groups), temperature=0.7)
    expected = [alone(plain, row, 0.7) for group in groups for row in group]  # type: ignore[arg-type]
    logprobs, entropy = (torch.cat(parts) for parts in zip(*expected, strict=True))
    torch.testing.assert_close(found.logprobs_N, logprobs, rtol=1e-4, atol=1e-4)
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(1))
    (found.logprobs_N @ weights + found.entropy_N.sum()).backward()
    (logprobs @ weights + entropy.sum()).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    ours = {f"base_model.model.{name}": p.grad for name, p in model.named_parameters()}
    ours = {name: grad for name, grad in ours.items() if grad is not None}
    assert ours.keys() == theirs.keys() and all(".lora_" in name for name in ours)
    for name, grad in ours.items():
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(
            grad, theirs[name], rtol=1e-3, atol=1e-3 * float(grad.abs().max())
        )


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.filterwarnings("ignore")  # a compiler's own
def test_compiled_layers_compute_with_adapters_and_without(tmp_path: Path) -> None:
    torch.compiler.reset()
    path = tiny_qwen3(tmp_path / "model")
    model, compiled = adapted_model(path), adapted_model(path)
    packed = pack_rows(families())
    for one in (model, compiled):
        stir(one)
        use_packing(one)
    compile_layers(compiled)
    found = {}
    for one in (model, compiled):
        with torch.no_grad(), switched_off(one):
            before = token_logprobs(one, packed, temperature=1.0).logprobs_N
        now = token_logprobs(one, packed, temperature=1.0).logprobs_N
        now.sum().backward()
        assert (now - before).abs().max() > 0.1
        grads = {name: p.grad for name, p in one.named_parameters() if p.requires_grad}
        found[one] = before, now.detach(), grads
    torch.testing.assert_close(found[compiled], found[model], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@MODELS
def test_weights_at_the_start_are_those_of_the_base_bit_for_bit(
    tmp_path: Path, write: Write, dtype: str
) -> None:
    path = write(tmp_path / "model")
    base, model = load_model(path, dtype), adapted_model(path, dtype=dtype)
    for one in (base, model):  # which adding nothing would change
        name = next(name for name, _ in one.named_parameters() if "q_proj" in name)
        one.get_parameter(name).data[0, :4] = -0.0
    expected = dict(base.named_parameters())
    found = dict(whole_weights(model, model.dtype))
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert weight.dtype == base.dtype
        as_bytes = [one.detach().view(torch.uint8) for one in (weight, expected[name])]
        assert torch.equal(*as_bytes)


@MODELS
def test_merged_weights_are_those_of_peft_and_leave_the_model_alone(
    tmp_path: Path, write: Write
) -> None:
    path = write(tmp_path / "model")
    model = adapted_model(path)
    stir(model)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    expected = by_peft(path, model).merge_and_unload().state_dict()  # type: ignore[operator]
    found = dict(whole_weights(model, model.dtype))
    torch.testing.assert_close(found, {name: expected[name] for name in found})
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    with switched_off(model):
        off = plain_logprobs(model, [1, 2], [3, 4, 5])
    torch.testing.assert_close(off, plain_logprobs(load_model(path, "float32"), [1, 2], [3, 4, 5]))
    on = plain_logprobs(model, [1, 2], [3, 4, 5])
    merge(model)
    assert adapter_of(model) is None
    torch.testing.assert_close(dict(model.named_parameters()), found, rtol=0, atol=0)
    torch.testing.assert_close(plain_logprobs(model, [1, 2], [3, 4, 5]), on, rtol=1e-3, atol=1e-3)
    assert (on - off).abs().max() > 0.1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_qwen3(tmp_path / "model")


def make_trainer(
    path: Path, *, dtype: str = "float32", hands_over_adapter: bool = False, **section: Any
) -> Trainer:
    folder = path.parent
    section = {"lr": 1e-2, "warmup_steps": 0, "lora": SECTION} | section
    return Trainer(
        model_path=path,
        dtype=dtype,
        section=LearnerSection(**section),
        temperature=1.0,
        publisher=Overlapping(
            Publisher(
                directory=str(folder),
                fallback=folder,
                run_id="test",
                log=folder / "version.json",
            )
        ),
        hands_over_adapter=hands_over_adapter,
    )


def batch(trainer: Trainer, step: int = 1) -> TrainBatch:
    groups = [sampled_group(trainer.model, seed=seed) for seed in (1, 2)]
    return make_batch(groups, step=step, publish_version=step)


def published(trainer: Trainer, step: int) -> tuple[Manifest, dict[str, Tensor]]:
    manifest = trainer.published(step)
    return manifest, read_tensors(manifest)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_raise_what_was_rewarded_and_move_adapters_alone(path: Path, dtype: str) -> None:
    trainer = make_trainer(path, dtype=dtype)
    before = {name: one.clone() for name, one in trainer.model.state_dict().items()}
    first = batch(trainer)
    rows = [(one.reward, one.rows[0].token_ids.tolist()) for one in first.groups[0].rollouts]

    def preferred() -> float:
        """How much likelier the rewarded row is than the others, in nats a token."""
        means = [
            (reward, plain_logprobs(trainer.model, ids[:1], ids[1:]).mean()) for reward, ids in rows
        ]
        (good,) = (mean for reward, mean in means if reward)
        return float(good - sum(mean for reward, mean in means if not reward) / 2)

    start = preferred()
    for step in range(1, 6):
        trainer.train(batch(trainer, step))
    assert preferred() > start + 0.1
    for name, tensor in trainer.model.state_dict().items():
        # An A and a B of each of seven matrices of two layers, and nothing else.
        assert torch.equal(tensor, before[name]) != (".lora_" in name), name
    assert sum(".lora_" in name for name in before) == 28
    weights = published(trainer, 5)[1]
    assert weights.keys() == shapes_of(path).keys()
    torch.testing.assert_close(
        weights, dict(whole_weights(trainer.model, trainer.model.dtype)), rtol=0, atol=0
    )
    trainer.close()


def test_the_adapter_alone_is_handed_over_to_engines_that_take_it(path: Path) -> None:
    trainer = make_trainer(path, hands_over_adapter=True, lora=SOME)
    trainer.train(batch(trainer))
    manifest, tensors = published(trainer, 1)
    assert manifest.adapter is not None
    assert manifest.adapter == adapter_of(trainer.model)
    assert manifest.adapter.target_modules == ["down_proj", "q_proj"]
    torch.testing.assert_close(tensors, adapter_tensors(trainer.model), rtol=0, atol=0)
    folder = AdapterFolder(shapes_of(path), max_rank=2)
    found = peft_logprobs(path, folder.put(manifest))
    torch.testing.assert_close(found, plain_logprobs(trainer.model, [1, 2], [3, 4, 5]))
    folder.close()
    trainer.close()


def on_vllm(test: object) -> object:
    for mark in needs_vllm:
        test = mark(test)
    return test


@on_vllm
def test_weights_that_are_sent_have_the_adapters_of_that_moment_in_them(path: Path) -> None:
    from learner.nccl import Sender

    sender = Sender(
        log=path.parent / "sent.json", num_workers=1, buffer_bytes=1 << 20, num_buffers=2
    )
    section = LearnerSection(lora=SECTION)
    trainer = Trainer(
        model_path=path, dtype="float32", section=section, temperature=1.0, publisher=sender
    )
    manifest = trainer.publish(1, 1)
    assert manifest is not None
    stir(trainer.model)
    sent = dict(sender._source)
    assert [(one.name, tuple(one.shape)) for one in manifest.tensors] == [
        (name, tuple(tensor.shape)) for name, tensor in sent.items()
    ]
    torch.testing.assert_close(
        sent, dict(whole_weights(trainer.model, torch.float32)), rtol=0, atol=0
    )
    base = load_model(path, "float32").get_parameter("model.layers.0.mlp.up_proj.weight")
    assert not torch.equal(sent["model.layers.0.mlp.up_proj.weight"], base)


def peft_logprobs(base: Path, adapter: Path) -> Tensor:
    loaded = PeftModel.from_pretrained(load_model(base, "float32"), str(adapter))
    return plain_logprobs(loaded, [1, 2], [3, 4, 5])  # type: ignore[arg-type]


def test_a_checkpoint_is_a_whole_model_and_an_adapter(path: Path, tmp_path: Path) -> None:
    trainer = make_trainer(path)
    trainer.train(batch(trainer))
    trainer.save(tmp_path / "step_1")
    expected = plain_logprobs(trainer.model, [1, 2], [3, 4, 5])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "step_1" / "hf")
    torch.testing.assert_close(
        dict(whole.state_dict()), dict(whole_weights(trainer.model, torch.float32)), rtol=0, atol=0
    )
    found = peft_logprobs(path, tmp_path / "step_1" / "adapter")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(plain_logprobs(whole, [1, 2], [3, 4, 5]), expected)
    # A name beside it is enough for peft to find the base.
    config = LoraConfig.from_pretrained(str(tmp_path / "step_1" / "adapter"))
    assert config.base_model_name_or_path == str(path)
    trainer.close()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_reference_is_the_model_without_adapters(path: Path, estimator: str) -> None:
    loss = loss_section(kl_coef=0.5, kl_estimator=estimator)
    trainer = make_trainer(path, loss=loss)
    stir(trainer.model)
    plain = load_model(path, "float32")
    given = batch(trainer)
    divergences = []
    for group in given.groups:
        for rollout in group.rollouts:
            ids, mask = rollout.rows[0].token_ids.tolist(), rollout.rows[0].mask.tolist()
            pairs = [plain_logprobs(one, ids[:1], ids[1:]) for one in (plain, trainer.model)]
            gaps = (pairs[0] - pairs[1])[torch.tensor(mask[1:]).bool()]
            k3 = gaps.exp() - 1 - gaps
            divergences.append(0.5 * gaps**2 if estimator == "k2" else k3)
    metrics = trainer.train(given).metrics
    expected = float(torch.cat(divergences).mean())
    assert expected > 0.01
    assert metrics["loss/kl_ref"] == pytest.approx(expected, rel=1e-3)
    trainer.close()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_porj"], r"targets has q_porj, and .* are down_proj, gate_proj, .*v_proj"),
        (["lm_head", "q_proj"], r"targets has lm_head, and"),
        (["embed_tokens"], r"targets has embed_tokens, and"),
    ],
)
def test_targets_that_the_model_lacks_are_refused(
    path: Path, targets: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        adapted_model(path, LoraSection(rank=2, targets=targets))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rank=-1"], r"learner\.lora\.rank.*"),
        (["rank=2", "alpha=0"], r"learner\.lora\.alpha.*"),
        (["alpha=16"], r"alpha=16 .* do nothing with rank=0.*: set rank"),
        (['targets=["q_proj"]'], r"do nothing with rank=0"),
        (["rank=2", 'targets=["q_proj","q_proj"]'], r"names a layer twice"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load([f"learner.lora.{setting}" for setting in settings])


def test_layers_that_the_models_files_lack_are_refused_before_anything_starts() -> None:
    some = [BASICS, "learner.lora.rank=2"]
    check(load([*some, 'learner.lora.targets=["q_proj", "down_proj"]']))
    for name in ("q_porj", "lm_head", "embed_tokens", "input_layernorm"):
        with pytest.raises(ConfigError, match=rf"learner\.lora\.targets has {name}, .*v_proj"):
            check(load([*some, f'learner.lora.targets=["q_proj", "{name}"]']))


VLLM = ['engine.kind="vllm"', "cluster.address=auto"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["engine.vllm.lora_rank=4", "learner.lora.rank=8"],
            r"lora_rank=4 .*learner\.lora\.rank=8: raise it to 8, or set it to 0",
        ),
        (["engine.vllm.lora_rank=4"], r"all weights: set engine\.vllm\.lora_rank=0, or"),
    ],
)
def test_adapters_that_an_engine_cannot_take_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_engine(load([BASICS, *VLLM, *settings]))


@pytest.mark.parametrize("settings", [[], ["engine.vllm.lora_rank=8"]])
def test_adapters_that_an_engine_can_take_are_not(settings: list[str]) -> None:
    check_engine(load([BASICS, *VLLM, *settings, "learner.lora.rank=8"]))


def test_a_warm_start_trains_adapters_and_writes_a_whole_policy(tmp_path: Path) -> None:
    traces = TraceRecipe(envs=["sum_list", "find_max"], count=48)
    small = PolicyRecipe(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocabulary=512)
    base = SftRecipe(out=str(tmp_path / "base"), batch_rows=8, traces=traces, policy=small)
    rows = generate(traces)
    sft.train(rows, base)
    recipe = msgspec.structs.replace(
        base,
        out=str(tmp_path / "out"),
        base=base.out,
        lora=LoraSection(rank=4, targets=["q_proj", "up_proj"]),
        epochs=3,
    )
    assert recipe_hash(recipe) != recipe_hash(msgspec.structs.replace(recipe, lora=LoraSection()))
    wrong = msgspec.structs.replace(recipe, lora=LoraSection(rank=4, targets=["q_porj"]))
    with pytest.raises(ConfigError, match=r"lora\.targets has q_porj"):
        sft.train(rows, wrong)
    sft.train(rows, recipe)
    before, after = (load_model(one.out, "float32") for one in (base, recipe))
    weights = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        is_adapted = name.endswith(("q_proj.weight", "up_proj.weight"))
        assert torch.equal(weight, weights[name]) != is_adapted, name
    lessons = encode_all(rows, ChatTokens.load(Path(recipe.out)), max_tokens=1024)
    losses = []
    for model in (before, after):
        use_packing(model)
        losses.append(sft.mean_loss(model, [row for some in lessons for row in some], recipe))
    assert losses[1] < losses[0] - 0.1


def test_a_new_policy_is_not_adapted() -> None:
    with pytest.raises(ValueError, match=r"lora\.rank=4 .*: name one in base, or set lora\.rank=0"):
        SftRecipe(out="new", lora=LoraSection(rank=4))
