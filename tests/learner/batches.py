"""Small batches to train on, with the log-probs that a sampler would have reported."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from configs.loss import LossSection
from rollout.types import Rollout, Row, Span, StopReason, TrainBatch, TrainGroup


def loss_section(**settings: Any) -> LossSection:
    """The loss with these settings, whose words a test may make; refused as a config is."""
    return LossSection(**settings)


def make_row(
    ids: Sequence[int],
    logprobs: Sequence[float],
    mask: Sequence[int],
    *,
    version: int = 0,
    mixed_kv: bool = False,
) -> Row:
    """A row whose masked tokens were all sampled by `version`, as single-token spans."""
    spans = [Span(version, i, i + 1, mixed_kv) for i, bit in enumerate(mask) if bit]
    return Row.pack(ids, logprobs, mask, spans)


def make_rollout(rows: list[Row], reward: float | None, *, member: int = 0) -> Rollout:
    """An answered rollout; with `reward=None`, one that the environment failed."""
    return Rollout(
        group_id="g",
        member=member,
        attempt=0,
        task_id="pool/env/0",
        pool="pool",
        pool_version="1",
        env="env",
        seed=0,
        stop=StopReason.ENV_ERROR if reward is None else StopReason.ANSWERED,
        reward=reward,
        rows=rows,
        turns=[],
    )


def make_group(rollouts: list[Rollout], *, group_id: str = "g") -> TrainGroup:
    return TrainGroup(group_id=group_id, pool="pool", rollouts=rollouts)


def make_batch(
    groups: list[TrainGroup],
    *,
    step: int = 1,
    version: int = 0,
    publish_version: int | None = None,
    max_lag: int = 2,
) -> TrainBatch:
    return TrainBatch(
        step=step,
        version=version,
        publish_version=publish_version,
        groups=groups,
        max_lag=max_lag,
    )


@torch.no_grad()
def sampler_logprobs(
    model: PreTrainedModel, ids: Sequence[int], *, temperature: float = 1.0
) -> list[float]:
    """[T] log-prob of each token given those before it, from full logits of one row; 0 first."""
    ids_T = torch.tensor(ids)
    logits_TV = model(input_ids=ids_T[None]).logits[0].float() / temperature
    logprobs_T = logits_TV[:-1].log_softmax(-1).gather(1, ids_T[1:, None])[:, 0]
    return [0.0, *logprobs_T.tolist()]


def sampled_group(
    model: PreTrainedModel,
    *,
    seed: int,
    rewards: Sequence[float] = (1.0, 0.0, 0.0),
    temperature: float = 1.0,
    shift: float = 0.0,
    version: int = 0,
) -> TrainGroup:
    """A group of one-row rollouts of different lengths, about half of each row trained.

    `shift` is the standard deviation of what is added to the log-probs of `model`, as if weights
    that differ from it had sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for member, reward in enumerate(rewards):
        num_tokens = 6 + int(torch.randint(0, 12, (), generator=generator))
        ids = torch.randint(0, model.config.vocab_size, (num_tokens,), generator=generator)
        mask = torch.randint(0, 2, (num_tokens,), generator=generator)
        mask[0], mask[-1] = 0, 1
        logprobs_T = torch.tensor(sampler_logprobs(model, ids.tolist(), temperature=temperature))
        logprobs_T += shift * torch.randn(num_tokens, generator=generator)
        logprobs = (logprobs_T * mask).tolist()
        row = make_row(ids.tolist(), logprobs, mask.tolist(), version=version)
        rollouts.append(make_rollout([row], reward, member=member))
    return make_group(rollouts, group_id=f"g{seed}")
