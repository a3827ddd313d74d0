import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from configs.lora import LoraSection
from configs.schema import LearnerSection
from learner.checkpoint import CheckpointError
from learner.export import write_hf
from learner.head import output_head
from learner.publish import Publisher
from learner.ranks import Ranks
from learner.trainer import Trainer
from rollout import checkpoints
from rollout.types import TrainBatch
from tests.learner.batches import (
    make_batch,
    make_group,
    make_rollout,
    make_row,
    sampled_group,
)
from tests.models import tiny_qwen3

MakeTrainer = Callable[..., Trainer]

ALL_WEIGHTS = LoraSection()
ADAPTERS = LoraSection(rank=2, alpha=5, targets=["q_proj", "down_proj"])


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A model directory with a tokenizer, and a file that is no part of either."""
    path = tiny_qwen3(tmp_path / "model")
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template="{{ messages }}")
    fast.save_pretrained(path)
    (path / "optimizer.bin").touch()
    return path


@pytest.fixture
def make_trainer(tmp_path: Path, model_path: Path) -> MakeTrainer:
    def make(
        *, dtype: str = "float32", path: Path = model_path, lora: LoraSection = ALL_WEIGHTS
    ) -> Trainer:
        return Trainer(
            model_path=path,
            dtype=dtype,
            section=LearnerSection(lr=1e-3, warmup_steps=3, lora=lora),
            temperature=1.0,
            publisher=Publisher(
                directory=str(tmp_path),
                fallback=tmp_path,
                run_id="test",
                log=tmp_path / "version.json",
            ),
        )

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def batch_for(trainer: Trainer, step: int) -> TrainBatch:
    group = sampled_group(trainer.model, seed=step, shift=0.1)
    return make_batch([group], step=step, publish_version=step)


def complete(run_dir: Path, trainer: Trainer) -> Path:
    directory = checkpoints.begin(run_dir, trainer.step)
    trainer.save(directory)
    checkpoints.mark_done(directory)
    return directory


@pytest.mark.parametrize("lora", [ALL_WEIGHTS, ADAPTERS], ids=["all weights", "adapters"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_trainer_continues_bit_for_bit(
    tmp_path: Path, make_trainer: MakeTrainer, dtype: str, lora: LoraSection
) -> None:
    trainer = make_trainer(dtype=dtype, lora=lora)
    for step in (1, 2):
        trainer.train(batch_for(trainer, step))
    directory = complete(tmp_path, trainer)
    batch = batch_for(trainer, 3)
    expected = trainer.train(batch)
    restored = make_trainer(dtype=dtype, lora=lora)
    # The checkpoint alone decides.
    for parameter in restored.model.parameters():
        parameter.data += 1.0 if parameter.requires_grad else 0.0
    restored.restore(directory)
    assert (restored.step, restored.version) == (2, 2)
    report = restored.train(batch)
    torch.testing.assert_close(weights(restored), weights(trainer), rtol=0, atol=0)
    for key in ("loss/total", "optim/lr", "optim/grad_norm"):
        assert report.metrics[key] == expected.metrics[key]


def test_bfloat16_continues_from_what_rounding_hides(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(dtype="bfloat16")
    trainer.train(batch_for(trainer, 1))
    restored = make_trainer(dtype="bfloat16")
    restored.restore(complete(tmp_path, trainer))
    # Steps too small for bfloat16 add up only in the float32 masters.
    for step in range(2, 6):
        batch = batch_for(trainer, step)
        trainer.train(batch)
        restored.train(batch)
    torch.testing.assert_close(weights(restored), weights(trainer), rtol=0, atol=0)


def test_restoring_brings_back_the_random_state(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    torch.manual_seed(7)
    directory = complete(tmp_path, trainer)
    expected = torch.rand(3)
    trainer.restore(directory)
    assert torch.equal(torch.rand(3), expected)


def test_hf_part_loads_as_a_model_with_its_tokenizer(
    tmp_path: Path, make_trainer: MakeTrainer, model_path: Path
) -> None:
    trainer = make_trainer()
    trainer.train(batch_for(trainer, 1))
    hf = complete(tmp_path, trainer) / "hf"
    model = AutoModelForCausalLM.from_pretrained(hf)
    torch.testing.assert_close(model.state_dict(), weights(trainer), rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    assert tokenizer.encode("w3 w5") == [3, 5]
    assert tokenizer.chat_template == "{{ messages }}"
    names = {path.name for path in hf.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= names
    assert "optimizer.bin" not in names
    # A run that starts from the checkpoint's model can itself be saved with a tokenizer.
    again = complete(tmp_path / "again", make_trainer(path=hf)) / "hf"
    assert {path.name for path in again.iterdir()} == names


def test_a_tied_model_is_saved_and_restored(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    path = tiny_qwen3(tmp_path / "tied", tied=True)
    trainer = make_trainer(path=path)
    trainer.train(batch_for(trainer, 1))
    restored = make_trainer(path=path)
    restored.restore(complete(tmp_path, trainer))
    torch.testing.assert_close(weights(restored), weights(trainer), rtol=0, atol=0)
    assert output_head(restored.model).weight is restored.model.get_input_embeddings().weight


def test_a_kill_before_the_mark_leaves_the_previous_checkpoint(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    trainer.train(batch_for(trainer, 1))
    first, expected = complete(tmp_path, trainer), weights(trainer)
    trainer.train(batch_for(trainer, 2))
    unfinished = checkpoints.begin(tmp_path, 2)
    trainer.save(unfinished)
    assert checkpoints.latest(tmp_path) == first
    restored = make_trainer()
    restored.restore(first)
    torch.testing.assert_close(weights(restored), expected, rtol=0, atol=0)
    # The resumed run reaches the same step and writes it whole.
    restored.train(batch_for(restored, 2))
    assert complete(tmp_path, restored) == unfinished
    assert checkpoints.latest(tmp_path) == unfinished


def test_a_kill_while_saving_leaves_nothing_in_the_way(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    trainer, directory = make_trainer(), tmp_path / "step_0"
    trainer.save(directory)
    # Killed between the two renames of a second attempt.
    shutil.copytree(directory / "hf", directory / ".learner.partial" / "hf")
    (directory / "resume" / "trainer.pt").unlink()
    trainer.save(directory)
    assert {path.name for path in directory.iterdir()} == {"hf", "resume"}
    make_trainer().restore(directory)


def test_saving_leaves_the_coordinators_files_alone(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    directory = checkpoints.begin(tmp_path, 0)
    (directory / "resume").mkdir()
    (directory / "resume" / "queue.msgpack").touch()
    make_trainer().save(directory)
    assert {path.name for path in (directory / "resume").iterdir()} == {
        "queue.msgpack",
        "slices",
        "trainer.pt",
    }


def test_a_complete_checkpoint_is_never_written_again(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    directory = complete(tmp_path, trainer)
    with pytest.raises(CheckpointError, match="complete"):
        trainer.save(directory)
    with pytest.raises(FileExistsError, match="complete"):
        checkpoints.begin(tmp_path, 0)


def test_a_truncated_state_is_refused(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    directory = complete(tmp_path, trainer)
    state = directory / "resume" / "trainer.pt"
    for damaged in (state.read_bytes()[:-100], b"no checkpoint", b""):
        state.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="cannot resume"):
            trainer.restore(directory)
    state.unlink()
    with pytest.raises(CheckpointError, match="cannot resume"):
        trainer.restore(directory)


def test_a_state_of_another_format_is_refused(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    directory = complete(tmp_path, trainer)
    torch.save({"format": 99}, directory / "resume" / "trainer.pt")
    with pytest.raises(CheckpointError, match="format 99"):
        trainer.restore(directory)


def test_a_rollback_goes_back_for_good_at_half_the_rate(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer()
    trainer.train(batch_for(trainer, 1))
    good, saved = weights(trainer), complete(tmp_path, trainer)
    for step in (2, 3):
        trainer.train(batch_for(trainer, step))
    away = sampled_group(trainer.model, seed=4, shift=0.1, version=3)
    order = make_batch([away], step=4, version=3, publish_version=4)
    report = trainer.train(msgspec.structs.replace(order, rollback=str(saved)))
    # What the weights of before sampled is left out, and no momentum moves what was put back.
    torch.testing.assert_close(weights(trainer), good, rtol=0, atol=0)
    assert report.metrics["optim/lr"] == pytest.approx(5e-4)
    assert report.manifest is not None and report.manifest.version == trainer.version == 4
    assert trainer.step == 4
    # Still in flight: a batch of the old weights alone changes nothing.
    late = sampled_group(trainer.model, seed=5, shift=0.1, version=3)
    trainer.train(make_batch([late], step=5, version=4))
    torch.testing.assert_close(weights(trainer), good, rtol=0, atol=0)

    # It is so after a restart too.
    other = make_trainer()
    other.restore(complete(tmp_path, trainer))
    fresh = sampled_group(trainer.model, seed=6, shift=0.1, version=4)
    for each in (trainer, other):
        metrics = each.train(make_batch([fresh, late], step=6, version=4)).metrics
        assert metrics["optim/lr"] == pytest.approx(5e-4)
        assert any(not torch.equal(weights(each)[name], good[name]) for name in good)
    torch.testing.assert_close(weights(other), weights(trainer), rtol=0, atol=0)


def test_what_is_left_out_may_have_any_ratio(tmp_path: Path, make_trainer: MakeTrainer) -> None:
    trainer, twin = make_trainer(), make_trainer()
    saved = complete(tmp_path, trainer)
    ids = [1, 2, 3]
    # All but impossible to its sampler, as what collapsed weights sampled may be to better ones.
    old = [make_row(ids, [0.0, 0.0, -1e4], [0, 0, 1]), make_row(ids, [0.0, 0.0, -9e3], [0, 0, 1])]
    rollouts = [
        make_rollout([row], reward, member=member)
        for member, (row, reward) in enumerate(zip(old, (1.0, 0.0), strict=True))
    ]
    order = make_batch([make_group(rollouts)], step=1, version=0)
    trainer.train(msgspec.structs.replace(order, rollback=str(saved)))
    torch.testing.assert_close(weights(trainer), weights(twin), rtol=0, atol=0)


def test_a_checkpoint_of_another_model_is_refused_by_name(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    directory = complete(tmp_path, make_trainer())
    wider = make_trainer(path=tiny_qwen3(tmp_path / "wider", ffn=96))
    before = weights(wider)
    with pytest.raises(CheckpointError, match="of another model") as error:
        wider.restore(directory)
    assert "model.layers.0.mlp.gate_proj.weight has shape [64, 32] there and [96, 32] here" in str(
        error.value
    )
    assert "and 2 more" in str(error.value)
    torch.testing.assert_close(weights(wider), before, rtol=0, atol=0)
    tied = make_trainer(path=tiny_qwen3(tmp_path / "tied", tied=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not in this model"):
        tied.restore(directory)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not in the checkpoint"):
        make_trainer().restore(complete(tmp_path / "of_tied", tied))


def test_a_checkpoint_of_another_number_type_is_refused(
    tmp_path: Path, make_trainer: MakeTrainer
) -> None:
    directory = complete(tmp_path, make_trainer(dtype="bfloat16"))
    with pytest.raises(
        CheckpointError, match=r"model\.dtype='bfloat16', and this run has 'float32'"
    ):
        make_trainer().restore(directory)


OTHERS = {
    "rank": LoraSection(rank=3, alpha=5, targets=ADAPTERS.targets),
    "alpha": LoraSection(rank=2, alpha=6, targets=ADAPTERS.targets),
    "targets": LoraSection(rank=2, alpha=5, targets=["q_proj", "up_proj"]),
    "all weights": ALL_WEIGHTS,
}


def in_words(lora: LoraSection) -> str:
    if not lora.rank:
        return "all weights (learner.lora.rank=0)"
    targets = sorted(lora.targets)
    return f"adapters of learner.lora.rank={lora.rank}, alpha={lora.alpha} and targets={targets}"


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_other_adapters_is_refused(
    tmp_path: Path, make_trainer: MakeTrainer, other: str
) -> None:
    pair = ADAPTERS, OTHERS[other]
    for theirs, mine in (pair, pair[::-1]):
        trainer, own = make_trainer(lora=theirs), make_trainer(lora=mine)
        trainer.train(batch_for(trainer, 1))
        directory = complete(tmp_path / str(theirs == ADAPTERS), trainer)
        assert (directory / "adapter").exists() == (theirs.rank > 0)
        before = weights(own)
        with pytest.raises(CheckpointError, match=r"resume with the learner\.lora it") as error:
            own.restore(directory)
        said = f"was written with {in_words(theirs)}, and this run trains {in_words(mine)}"
        assert said in str(error.value)
        torch.testing.assert_close(weights(own), before, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["lost", "cut", "garbled", "foreign"])
def test_damaged_slices_are_refused(tmp_path: Path, make_trainer: MakeTrainer, damage: str) -> None:
    trainer = make_trainer()
    directory = complete(tmp_path, trainer)
    (file,) = (directory / "resume" / "slices").iterdir()
    data = file.read_bytes()
    if damage == "lost":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[:-8])
    elif damage == "garbled":
        file.write_bytes(bytes(8) + data[8:])
    else:
        shutil.copyfile(file, file.with_name("shard-00002-model-00001-of-00001.safetensors"))
    with pytest.raises(CheckpointError, match="cannot resume"):
        trainer.restore(directory)


def test_what_was_restored_is_said(
    tmp_path: Path, make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer()
    trainer.train(batch_for(trainer, 1))
    directory = complete(tmp_path, trainer)
    with caplog.at_level("INFO", logger="learner.checkpoint"):
        make_trainer().restore(directory)
    (said,) = [one.getMessage() for one in caplog.records if one.name == "learner.checkpoint"]
    assert said.startswith(f"restored {directory}: step 1, version 1, ")
    assert "written by 1 ranks, read by rank 0 of 1" in said and "slices/shard-" in said


def test_large_models_are_exported_in_several_files(
    tmp_path: Path, make_trainer: MakeTrainer, model_path: Path
) -> None:
    trainer = make_trainer()
    one, many = tmp_path / "one", tmp_path / "many"
    settings = {"dtype": torch.float32, "tokenizer_source": model_path, "ranks": Ranks()}
    write_hf(one, trainer.model, **settings)
    write_hf(many, trainer.model, **settings, file_bytes=20_000)
    files = sorted(path.name for path in many.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    # No file is larger than it may be, but for a tensor that is.
    assert all((many / name).stat().st_size < 30_000 for name in files)
    assert len(list(one.glob("*.safetensors"))) == 1
    for directory in (one, many):
        loaded = AutoModelForCausalLM.from_pretrained(directory)
        torch.testing.assert_close(loaded.state_dict(), weights(trainer), rtol=0, atol=0)
        assert AutoTokenizer.from_pretrained(directory).encode("w3") == [3]
