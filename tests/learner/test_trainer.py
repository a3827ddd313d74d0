import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import torch
from torch import Tensor

from configs.loss import LossSection
from configs.schema import LearnerSection, ModelSection, RunConfig, WeightsSection
from learner.overlap import Overlapping
from learner.publish import Publisher
from learner.trainer import NonFiniteLossError, Trainer
from learner.trainer import make_trainer as trainer_of_run
from rollout.types import LagError, StopReason, TrainBatch, TrainGroup, decode_batch
from rollout.weights import read_tensors
from tests.learner.batches import (
    loss_section,
    make_batch,
    make_group,
    make_rollout,
    make_row,
    sampled_group,
    sampler_logprobs,
)
from tests.models import tiny_qwen3

MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Trainers of the same tiny model; keywords are those of the learner's section."""
    model_path = tiny_qwen3(tmp_path / "model")

    def make(
        *,
        temperature: float = 1.0,
        dtype: str = "float32",
        wrap: Callable[[Publisher], Publisher | Overlapping] = lambda publisher: publisher,
        **section: Any,
    ) -> Trainer:
        return Trainer(
            model_path=model_path,
            dtype=dtype,
            section=LearnerSection(**section),
            temperature=temperature,
            publisher=wrap(
                Publisher(
                    directory=str(tmp_path),
                    fallback=tmp_path / "fallback",
                    run_id="test",
                    log=tmp_path / "version.json",
                )
            ),
        )

    return make


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def two_groups(trainer: Trainer, **kwargs: Any) -> list[TrainGroup]:
    return [sampled_group(trainer.model, seed=seed, **kwargs) for seed in (1, 2)]


def broken_batch(trainer: Trainer, *, step: int = 1) -> TrainBatch:
    """A batch of which one token was all but impossible to its sampler: its ratio overflows."""
    ids = [1, 2, 3]
    good = sampler_logprobs(trainer.model, ids)
    rollouts = [
        make_rollout([make_row(ids, [0.0, 0.0, good[2]], [0, 0, 1])], 1.0),
        make_rollout([make_row(ids, [0.0, 0.0, -1e4], [0, 0, 1])], 0.0, member=1),
    ]
    return make_batch([make_group(rollouts)], step=step)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_step_on_fresh_data_has_ratio_one(
    make_trainer: MakeTrainer, temperature: float
) -> None:
    trainer = make_trainer(temperature=temperature)
    metrics = trainer.train(make_batch(two_groups(trainer, temperature=temperature))).metrics
    assert metrics["kl/engine_max"] < 1e-4
    assert metrics["kl/gap_lag0_mean"] < 1e-5
    assert metrics["kl/engine_mean"] < 1e-8
    assert metrics["loss/ess"] == pytest.approx(1.0)
    assert metrics["loss/clip_frac"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())


def test_micro_batches_step_like_one_batch(make_trainer: MakeTrainer) -> None:
    # With plain gradients the weights show the gradient: Adam hides its scale.
    results = []
    for micro_batch_tokens in (1, 40, 10_000):
        trainer = make_trainer(micro_batch_tokens=micro_batch_tokens, grad_clip=1e9)
        batch = make_batch(two_groups(trainer, shift=0.4))
        report = trainer.train(batch)
        metrics = {k: v for k, v in report.metrics.items() if not k.startswith("time/")}
        results.append((metrics, weights(trainer)))
    for metrics, after in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        torch.testing.assert_close(after, results[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changed", [{"share_prefix": False}, {"activation_checkpointing": True}], ids=str
)
def test_what_saves_time_or_memory_changes_no_step(
    make_trainer: MakeTrainer, changed: dict[str, bool]
) -> None:
    results = []
    for section in ({}, changed):
        trainer = make_trainer(grad_clip=1e9, **section)
        prompt = list(range(12))
        rollouts = [
            make_rollout([make_row([*prompt, *more], [-3.0] * 15, [0] * 11 + [1] * 4)], reward)
            for more, reward in (([30, 31, 32], 1.0), ([33, 31, 32], 0.0))
        ]
        report = trainer.train(make_batch([make_group(rollouts), *two_groups(trainer, shift=0.4)]))
        metrics = {k: v for k, v in report.metrics.items() if not k.startswith("time/")}
        results.append((metrics, weights(trainer)))
    (metrics, after), (other_metrics, other) = results
    assert metrics == pytest.approx(other_metrics, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(after, other, rtol=1e-4, atol=1e-5)


def test_loss_is_divided_by_all_trained_tokens_also_when_some_are_clipped(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(loss=loss_section(advantage="grpo_no_std"))
    ids = [5, 6, 7, 8]
    new = sampler_logprobs(trainer.model, ids)
    # Two tokens at ratio 1 and one at ratio 2, in a rollout of advantage 1/2; one token at ratio 1
    # in a rollout of advantage -1/2.
    old = [0.0, new[1], new[2], new[3] - math.log(2.0)]
    rollouts = [
        make_rollout([make_row(ids, old, [0, 1, 1, 1])], 1.0),
        make_rollout([make_row(ids[:2], [0.0, new[1]], [0, 1])], 0.0, member=1),
    ]
    metrics = trainer.train(make_batch([make_group(rollouts)])).metrics
    expected = -(0.5 + 0.5 + 1.2 * 0.5 - 0.5) / 4
    assert metrics["loss/total"] == pytest.approx(expected, rel=1e-4)
    assert metrics["loss/policy"] == metrics["loss/total"]
    assert metrics["loss/clip_frac"] == 1 / 4
    assert metrics["perf/trained_tokens"] == 4.0


def test_repeated_steps_raise_rewarded_tokens_and_lower_the_others(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(lr=1e-3, warmup_steps=0)
    prompt, good, bad = [1, 2, 3], 10, 20
    rollouts = []
    for member, (token, reward) in enumerate([(good, 1.0), (bad, 0.0)]):
        ids = [*prompt, token]
        logprobs = [0.0, 0.0, 0.0, sampler_logprobs(trainer.model, ids)[3]]
        row = make_row(ids, logprobs, [0, 0, 0, 1])
        rollouts.append(make_rollout([row], reward, member=member))
    before = [rollout.rows[0].logprobs[3] for rollout in rollouts]
    for step in range(1, 6):
        trainer.train(make_batch([make_group(rollouts)], step=step))
    after = [sampler_logprobs(trainer.model, [*prompt, token])[3] for token in (good, bad)]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def test_rate_warms_up_over_the_first_steps(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(lr=1e-4, warmup_steps=2)
    rates = []
    for step in (1, 2, 3):
        batch = make_batch(two_groups(trainer), step=step)
        rates.append(trainer.train(batch).metrics["optim/lr"])
    assert rates == pytest.approx([5e-5, 1e-4, 1e-4])


def test_a_loss_that_is_no_number_stops_before_the_weights_move(
    make_trainer: MakeTrainer,
) -> None:
    trainer, twin = make_trainer(), make_trainer()
    before = weights(trainer)
    with pytest.raises(NonFiniteLossError, match=r"step 1.*weights are still those of step 0"):
        trainer.train(broken_batch(trainer))
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0)
    assert trainer.step == 0
    # Nor did the optimizer: what follows is what would have happened without the broken batch.
    for each in (trainer, twin):
        each.train(make_batch(two_groups(each)))
    torch.testing.assert_close(weights(trainer), weights(twin), rtol=0, atol=0)


def test_gap_at_lag_zero_leaves_out_older_and_mixed_tokens(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    ids = [5, 6, 7]
    new = sampler_logprobs(trainer.model, ids)
    wrong = make_row(ids, [0.0, 0.0, new[2] - 0.5], [0, 0, 1], version=0)
    mixed = make_row(ids, [0.0, 0.0, new[2] - 0.5], [0, 0, 1], version=1, mixed_kv=True)
    fresh = make_row(ids, [0.0, 0.0, new[2] - 0.25], [0, 0, 1], version=1)
    rollouts = [make_rollout([wrong, mixed], 1.0), make_rollout([fresh], 0.0, member=1)]
    metrics = trainer.train(make_batch([make_group(rollouts)], version=1)).metrics
    assert metrics["kl/gap_lag0_mean"] == pytest.approx(0.25, abs=1e-4)


def test_gap_at_lag_zero_is_absent_when_all_tokens_are_older(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    report = trainer.train(make_batch(two_groups(trainer), version=1))
    assert "kl/gap_lag0_mean" not in report.metrics


def test_a_step_publishes_the_weights_it_made(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    silent = trainer.train(make_batch(two_groups(trainer), step=1))
    assert silent.manifest is None and trainer.version == 0
    report = trainer.train(make_batch(two_groups(trainer), step=2, publish_version=1))
    assert report.manifest is not None
    assert (report.manifest.version, report.manifest.step) == (1, 2)
    assert trainer.version == 1
    torch.testing.assert_close(read_tensors(report.manifest), weights(trainer), rtol=0, atol=0)
    trainer.close()
    assert not Path(report.manifest.path).exists()


def test_a_version_is_that_of_its_step_although_the_next_one_is_trained(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(wrap=Overlapping)
    report = trainer.train(make_batch(two_groups(trainer), step=1, publish_version=1))
    assert (report.manifest, report.publishing) == (None, 1)
    made = weights(trainer)
    silent = trainer.train(make_batch(two_groups(trainer), step=2))
    assert (silent.manifest, silent.publishing) == (None, None)
    manifest = trainer.published(1)
    assert (manifest.version, manifest.step) == (1, 1)
    torch.testing.assert_close(read_tensors(manifest), made, rtol=0, atol=0)
    assert any(not torch.equal(made[name], now) for name, now in weights(trainer).items())
    trainer.close()
    assert not Path(manifest.path).exists()


def test_no_checkpoint_follows_a_version_that_could_not_be_published(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(wrap=Overlapping)
    (tmp_path / "version.json").mkdir()  # in the way of what is noted first
    report = trainer.train(make_batch(two_groups(trainer), step=1, publish_version=1))
    with pytest.raises(OSError, match="version"):
        trainer.save(tmp_path / "step_1")
    assert not (tmp_path / "step_1").exists()
    assert report.publishing == 1
    with pytest.raises(OSError, match="version"):
        trainer.published(1)
    with pytest.raises(OSError, match="version"):
        trainer.close()


def test_report_says_when_the_learner_was_busy(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    report = trainer.train(make_batch(two_groups(trainer), version=2, publish_version=3))
    (busy,) = report.busy
    assert (report.step, report.version, busy.who) == (1, 2, "learner")
    total = report.metrics["time/train_s"] + report.metrics["time/publish_s"]
    assert busy.end_s - busy.start_s == pytest.approx(total)


def test_a_step_is_neither_skipped_nor_trained_twice(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.train(make_batch(two_groups(trainer), step=1))
    for step in (1, 3):
        with pytest.raises(RuntimeError, match=f"batch of step {step} after step 1"):
            trainer.train(make_batch(two_groups(trainer), step=step))


def test_a_batch_beyond_the_lag_bound_is_not_trained(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = weights(trainer)
    with pytest.raises(LagError, match="g1"):
        trainer.train(make_batch(two_groups(trainer), version=3, max_lag=2))
    torch.testing.assert_close(weights(trainer), before, rtol=0, atol=0)


def test_a_faulted_rollout_is_not_trained(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    row = make_row([1, 2], [0.0, -1.0], [0, 1])
    rollouts = [make_rollout([row], 1.0), make_rollout([row], None, member=1)]
    with pytest.raises(ValueError, match="without a verdict"):
        trainer.train(make_batch([make_group(rollouts)]))


def test_bfloat16_trains_and_publishes_bfloat16(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(dtype="bfloat16", lr=1e-2, warmup_steps=0)
    before = weights(trainer)
    report = trainer.train(make_batch(two_groups(trainer), publish_version=1))
    assert report.manifest is not None
    published = read_tensors(report.manifest)
    assert {tensor.dtype for tensor in published.values()} == {torch.bfloat16}
    assert any(not torch.equal(published[name], before[name]) for name in published)
    # The sampler of this batch is the same bfloat16 model with a bfloat16 head.
    assert report.metrics["kl/gap_lag0_mean"] < 5e-2


def test_greedy_rollouts_cannot_be_trained_on(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match=r"rollout\.temperature=0"):
        make_trainer(temperature=0.0)


def test_trainers_of_two_runs_of_one_name_keep_their_files_apart(tmp_path: Path) -> None:
    model_path, shared = tiny_qwen3(tmp_path / "model"), tmp_path / "shm"
    shared.mkdir()
    config = RunConfig(
        model=ModelSection(path=str(model_path)), weights=WeightsSection(dir=str(shared))
    )
    # A run directory may have a name that no file of ours would get.
    runs = [tmp_path / place / "my run" for place in ("a", "b")]
    trainers = [trainer_of_run(config, run_dir) for run_dir in runs]
    for trainer in trainers:
        trainer.publish(1, 0)
    manifests = [trainer.published(1) for trainer in trainers]
    assert manifests[0].path != manifests[1].path
    for manifest in manifests:
        assert Path(manifest.path).parent == shared
        read_tensors(manifest)
    # The learner of a run that restarts sweeps what it left, and only that.
    trainer_of_run(config, runs[0])
    assert [Path(manifest.path).exists() for manifest in manifests] == [False, True]


CORRECTIONS = get_args(get_type_hints(LossSection)["correction"])


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_every_correction_moves_the_weights_and_stays_finite(
    make_trainer: MakeTrainer, correction: str
) -> None:
    level = "sequence" if correction == "vespo" else "token"
    trainer = make_trainer(
        loss=loss_section(correction=correction, level=level),
        micro_batch_tokens=40,
        warmup_steps=0,
    )
    before = weights(trainer)
    batch = make_batch(two_groups(trainer, shift=0.2), version=1)
    metrics = trainer.train(batch).metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["optim/grad_norm"] > 0
    after = weights(trainer)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("aggregation", ["sequence", "constant"])
def test_micro_batches_step_like_one_batch_whatever_weighs_the_same(
    make_trainer: MakeTrainer, aggregation: str
) -> None:
    constant = 7 if aggregation == "constant" else 0
    loss = loss_section(
        aggregation=aggregation,
        constant_tokens=constant,
        correction="m2po",
    )
    results = []
    for micro_batch_tokens in (1, 10_000):
        trainer = make_trainer(micro_batch_tokens=micro_batch_tokens, grad_clip=1e9, loss=loss)
        metrics = trainer.train(make_batch(two_groups(trainer, shift=0.4))).metrics
        results.append({k: v for k, v in metrics.items() if not k.startswith("time/")})
    assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)
    # Some tokens are left out, and the others do not grow for it.
    assert results[0]["loss/mask_frac"] > 0


def test_a_batch_within_its_budget_keeps_every_token(make_trainer: MakeTrainer) -> None:
    fractions = []
    for budget in (10.0, 0.04, 1e-9):
        trainer = make_trainer(
            loss=loss_section(correction="m2po", m2po_budget=budget), micro_batch_tokens=1
        )
        metrics = trainer.train(make_batch(two_groups(trainer, shift=0.4))).metrics
        fractions.append(metrics["loss/mask_frac"])
    # About half of the tokens are pushed further from their sampler: all of those may go.
    assert fractions[0] == 0.0 < fractions[1] < fractions[2] < 0.8


def test_what_is_left_out_changes_no_denominator(make_trainer: MakeTrainer) -> None:
    ids = [5, 6, 7, 8]
    metrics = {}
    for name in ("none", "icepop"):
        trainer = make_trainer(loss=loss_section(correction=name, advantage="grpo_no_std"))
        new = sampler_logprobs(trainer.model, ids)
        # One of three tokens of the first rollout is far from its sampler.
        old = [0.0, new[1], new[2], new[3] - math.log(8.0)]
        rollouts = [
            make_rollout([make_row(ids, old, [0, 1, 1, 1])], 1.0),
            make_rollout([make_row(ids[:2], [0.0, new[1]], [0, 1])], 0.0, member=1),
        ]
        metrics[name] = trainer.train(make_batch([make_group(rollouts)])).metrics
    assert metrics["none"]["loss/policy"] == pytest.approx(-(3 * 0.5 - 0.5) / 4, rel=1e-4)
    assert metrics["icepop"]["loss/policy"] == pytest.approx(-(2 * 0.5 - 0.5) / 4, rel=1e-4)
    assert metrics["icepop"]["loss/mask_frac_pos"] == pytest.approx(1 / 3)


def test_a_batch_may_be_taken_in_several_updates(make_trainer: MakeTrainer) -> None:
    # Without warm-up and with one group in each part: two updates are two steps of one group.
    once, twice = make_trainer(warmup_steps=0), make_trainer(warmup_steps=0, updates_per_batch=2)
    groups = two_groups(once)
    metrics = twice.train(make_batch(groups)).metrics
    assert twice.step == 1
    for step, group in enumerate(groups, 1):
        once.train(make_batch([group], step=step))
    torch.testing.assert_close(weights(twice), weights(once), rtol=0, atol=0)
    # The second update sees weights that the first has moved.
    assert metrics["kl/engine_max"] > 1e-4


def test_recomputed_centre_is_that_of_the_batch_and_not_of_the_update(
    make_trainer: MakeTrainer,
) -> None:
    loss = loss_section(
        correction="decoupled", proximal="recomputed", clip_low=0.01, clip_high=0.01
    )
    trainer = make_trainer(loss=loss, updates_per_batch=2, warmup_steps=0, lr=1e-2)
    metrics = trainer.train(make_batch(two_groups(trainer))).metrics
    # In the first update nothing has moved from the centre; in the second the clip acts.
    assert 0 < metrics["loss/clip_frac"] <= 0.5


def test_rollouts_that_a_budget_cut_off_may_be_left_out(make_trainer: MakeTrainer) -> None:
    ids = [5, 6, 7]
    trainer = make_trainer(loss=loss_section(overlong="mask", advantage="grpo_no_std"))
    new = sampler_logprobs(trainer.model, ids)
    rollouts = [
        make_rollout([make_row(ids, new, [0, 1, 1])], reward, member=member)
        for member, reward in enumerate((1.0, 0.0, 0.5))
    ]
    cut = msgspec.structs.replace(rollouts[1], stop=StopReason.MAX_TURNS)
    batch = make_batch([make_group([rollouts[0], cut, rollouts[2]])])
    metrics = trainer.train(batch).metrics
    # Its reward is in the baseline and its tokens in the denominator: only its terms are missing.
    assert metrics["loss/policy"] == pytest.approx(-(2 * 0.5 + 2 * 0.0) / 6, rel=1e-4)
    assert metrics["loss/overlong_frac"] == pytest.approx(1 / 3)


def test_pull_towards_the_initial_model(make_trainer: MakeTrainer) -> None:
    loss = loss_section(kl_coef=10.0, kl_estimator="k2")
    trainer = make_trainer(loss=loss, warmup_steps=0, lr=1e-2)
    group = two_groups(trainer)[0]
    assert trainer.train(make_batch([group], step=1)).metrics["loss/kl_ref"] < 1e-9
    away = trainer.train(make_batch([group], step=2)).metrics
    assert away["loss/kl_ref"] > 1e-4
    expected = away["loss/policy"] + 10.0 * away["loss/kl_ref"]
    assert away["loss/total"] == pytest.approx(expected, rel=1e-4)
    for step in range(3, 30):
        trainer.train(make_batch([group], step=step))
    free = make_trainer(warmup_steps=0, lr=1e-2)
    for step in range(1, 30):
        free.train(make_batch([group], step=step))
    ids, mask = group.rollouts[0].rows[0].token_ids.tolist(), group.rollouts[0].rows[0].mask
    start = sampler_logprobs(make_trainer().model, ids)
    held, gone = (sampler_logprobs(each.model, ids) for each in (trainer, free))
    gaps = [
        sum(abs(a - b) * bit for a, b, bit in zip(new, start, mask, strict=True))
        for new in (held, gone)
    ]
    assert gaps[0] < gaps[1]


def test_entropy_bonus_keeps_replies_random(make_trainer: MakeTrainer) -> None:
    entropies = []
    for coefficient in (0.0, 1.0):
        trainer = make_trainer(loss=loss_section(entropy_coef=coefficient), warmup_steps=0, lr=1e-2)
        group = two_groups(trainer)[0]
        steps = [trainer.train(make_batch([group], step=step)) for step in range(1, 12)]
        entropies.append(steps[-1].metrics["loss/entropy"])
    assert entropies[1] > entropies[0]


def test_a_broken_batch_is_kept_and_can_be_read(tmp_path: Path) -> None:
    model_path = tiny_qwen3(tmp_path / "model")
    config = RunConfig(model=ModelSection(path=str(model_path)))
    trainer = trainer_of_run(config, tmp_path)
    batch = broken_batch(trainer)
    with pytest.raises(NonFiniteLossError, match="decode_batch") as raised:
        trainer.train(batch)
    (path,) = (tmp_path / "broken_batches").iterdir()
    assert path.name == "step_000001.msgpack" and str(path) in str(raised.value)
    assert decode_batch(path.read_bytes()) == batch
    trainer.close()


def test_a_broken_batch_that_cannot_be_kept_is_said_all_the_same(tmp_path: Path) -> None:
    config = RunConfig(model=ModelSection(path=str(tiny_qwen3(tmp_path / "model"))))
    trainer = trainer_of_run(config, tmp_path)
    (tmp_path / "broken_batches").write_text("in the way")
    with pytest.raises(NonFiniteLossError, match=r"step 1.*could not be kept"):
        trainer.train(broken_batch(trainer))
    trainer.close()
