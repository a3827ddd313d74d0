"""Whatever a batch consists of, its gradient is that of its rows computed alone, one after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from configs.schema import LearnerSection
from learner.trainer import Trainer
from rollout.model import load_model
from rollout.types import Rollout, Row, Span, StopReason, TrainBatch
from tests.learner.batches import (
    loss_section,
    make_batch,
    make_group,
    make_rollout,
    make_row,
    sampler_logprobs,
)
from tests.models import tiny_gemma3, tiny_qwen3

pytestmark = pytest.mark.timeout(300)

TEMPERATURE = 0.8

# Those whose formula is short enough to be written down once more.
LOSSES: list[dict[str, Any]] = [
    {},
    {"aggregation": "sequence", "entropy_coef": 0.1},
    {"level": "sequence", "advantage": "rloo"},
    {"correction": "tis", "level": "sequence", "overlong": "mask"},
    {"correction": "none", "aggregation": "constant", "constant_tokens": 7},
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Full attention, and one with a window that is shorter than rows are."""
    folder = tmp_path_factory.mktemp("models")
    return [tiny_qwen3(folder / "full"), tiny_gemma3(folder / "window")]


def of_row(model: PreTrainedModel, row: Row) -> tuple[Tensor, Tensor]:
    """Log-probs of the trained tokens, and entropies, by an ordinary pass."""
    ids = torch.from_numpy(row.token_ids.astype(np.int64))
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float() / TEMPERATURE
    logprobs = logits.log_softmax(-1)
    at = torch.from_numpy(np.flatnonzero(row.mask))
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs[at - 1, ids[at]], entropies[at - 1]


def some_ids(random: np.random.Generator, prefix: Sequence[int], known: list[list[int]]) -> Any:
    """A row of any kind: like none, like another, its beginning, more than it, the prefix, one token."""
    new = random.integers(1, 60, random.integers(1, 25)).tolist()
    other = known[random.integers(len(known))] if known else new
    kinds = [
        [*prefix, *new],
        [*prefix, *new],
        new,
        other,
        other[: random.integers(1, len(other) + 1)],
        [*other, *new],
        prefix or new,
        new[:1],
    ]
    return list(kinds[random.integers(len(kinds))])


def some_row(
    model: PreTrainedModel, random: np.random.Generator, prefix: list[int], known: list[list[int]]
) -> Row:
    ids = some_ids(random, prefix, known)
    known.append(ids)
    mask = (random.random(len(ids)) < random.choice([0.0, 0.3, 0.7, 1.0])).astype(np.uint8)
    mask[0] = 0
    logprobs = np.array(sampler_logprobs(model, ids, temperature=TEMPERATURE))
    noise = random.normal(0.0, 0.3, len(ids))
    spans = [Span(int(random.integers(0, 3)), int(at), int(at) + 1) for at in np.flatnonzero(mask)]
    return Row.pack(ids, (logprobs + noise) * mask, mask, spans)


def some_batch(model: PreTrainedModel, seed: int) -> TrainBatch:
    """Groups of two to four ragged rollouts, each of one to three rows."""
    random, groups = np.random.default_rng(seed), []
    for number in range(random.integers(1, 4)):
        prefix, known = random.integers(1, 60, random.integers(0, 16)).tolist(), list[list[int]]()
        rollouts: list[Rollout] = []
        for member in range(random.integers(2, 5)):
            rows = [
                some_row(model, random, prefix, known) for _ in range(random.choice([1, 1, 2, 3]))
            ]
            one = make_rollout(rows, float(random.choice([0.0, 0.5, 1.0])), member=member)
            if random.random() < 0.2:
                one = msgspec.structs.replace(one, stop=StopReason.MAX_TOKENS)
            rollouts.append(one)
        groups.append(make_group(rollouts, group_id=f"g{number}"))
    return make_batch(groups, version=2)


def expected_loss(model: PreTrainedModel, batch: TrainBatch, loss: dict[str, Any]) -> Tensor:
    given: list[tuple[Rollout, float]] = []
    for group in batch.groups:
        rewards = np.array([one.reward for one in group.rollouts])
        scale = rewards.std() + 1e-6
        if loss.get("advantage") == "rloo":
            scale = (len(rewards) - 1) / len(rewards)
        advantages = ((rewards - rewards.mean()) / scale).tolist()
        given += zip(group.rollouts, advantages, strict=True)
    numbers = [sum(int(row.mask.sum()) for row in one.rows) for one, _ in given]
    num_rollouts = sum(number > 0 for number in numbers)
    total = torch.zeros(())
    for (one, advantage), number in zip(given, numbers, strict=True):
        if loss.get("overlong") == "mask" and one.stop is StopReason.MAX_TOKENS:
            continue
        weight = {
            "token": 1 / max(sum(numbers), 1),
            "sequence": 1 / (num_rollouts * number) if number else 0.0,
            "constant": 1 / (max(num_rollouts, 1) * 7),
        }[loss.get("aggregation", "token")]
        for row in one.rows:
            if not row.mask.any():
                continue
            new, entropies = of_row(model, row)
            log_ratio = new - torch.tensor(row.logprobs[row.mask.astype(bool)])
            correction = loss.get("correction", "clip")
            if correction == "clip":
                is_row = loss.get("level") == "sequence"
                ratio = (log_ratio.mean().expand(len(new)) if is_row else log_ratio).exp()
                bounded = ratio.clamp(0.8, 1.2)
                terms = -torch.minimum(ratio * advantage, bounded * advantage)
            elif correction == "tis":
                terms = -log_ratio.detach().sum().exp().clamp(max=2.0) * advantage * new
            else:
                terms = -advantage * new
            total = total + weight * (terms - loss.get("entropy_coef", 0.0) * entropies).sum()
    return total


def test_of_any_batch(paths: list[Path]) -> None:
    models = [load_model(path, "float32") for path in paths]
    num_compared = 0
    for seed in range(30):
        model, loss = models[seed % 2], LOSSES[seed // 2 % len(LOSSES)]
        batch = some_batch(model, seed)
        if not any(row.mask.any() for g in batch.groups for one in g.rollouts for row in one.rows):
            continue
        trainer = Trainer(
            model_path=paths[seed % 2],
            dtype="float32",
            section=LearnerSection(
                loss=loss_section(**loss),
                micro_batch_tokens=(1, 8, 20, 40, 200)[seed % 5],
                share_prefix=seed % 3 != 0,
                grad_clip=1e9,
            ),
            temperature=TEMPERATURE,
            publisher=None,
        )
        trainer._backward(trainer._work(trainer._packed(batch)), None)
        model.zero_grad()
        wanted = expected_loss(model, batch, loss)
        if wanted.requires_grad:
            wanted.backward()
        for (name, one), (_, other) in zip(
            model.named_parameters(), trainer.model.named_parameters(), strict=True
        ):
            one, other = (torch.zeros_like(p) if p.grad is None else p.grad for p in (one, other))
            size = max(1e-3, float(one.abs().max()))
            assert float((one - other).abs().max()) < 1e-3 * size, (seed, loss, name)
        num_compared += 1
    assert num_compared > 20


def test_what_is_left_out_makes_no_room_for_others(paths: list[Path]) -> None:
    loss = loss_section(correction="m2po", overlong="mask", advantage="grpo_no_std")
    section = LearnerSection(loss=loss)
    trainer = Trainer(
        model_path=paths[0], dtype="float32", section=section, temperature=1.0, publisher=None
    )
    ids, mask = [5, 6, 7, 8, 9, 10, 11], [0, 1, 1, 1, 1, 1, 1]
    new = np.array(sampler_logprobs(trainer.model, ids)) * mask
    # A mean square of 0.09 is past the budget of 0.04; with as many again near 0 it would not be.
    far = make_rollout([make_row(ids[:3], (new - 0.3)[:3].tolist(), mask[:3])], 1.0)
    near = make_rollout([make_row(ids, (new + 0.01).tolist(), mask)], 0.0, member=1)
    near = msgspec.structs.replace(near, stop=StopReason.MAX_TOKENS)
    metrics = trainer.train(make_batch([make_group([far, near])])).metrics
    assert metrics["loss/mask_frac_pos"] == 1.0
    assert metrics["loss/mask_frac_neg"] == 0.0
