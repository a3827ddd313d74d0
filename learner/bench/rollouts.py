"""The rollouts that both sides train on: groups with one prompt, several turns, ragged lengths."""

from dataclasses import dataclass

import numpy as np

from rollout.types import Rollout, Row, Span, StopReason, TrainBatch, TrainGroup

# Standard deviation of the logarithm of a reply's length.
_SPREAD = 0.6


@dataclass(slots=True, kw_only=True, frozen=True)
class Sizes:
    """Tokens are means, but for the prompt, which varies by group by a quarter."""

    groups: int
    members: int
    prompt: int
    turns: int
    """Most of a rollout; each has 1 up to this many."""
    reply: int
    observation: int


def make_batch(sizes: Sizes, *, vocab: int, seed: int) -> TrainBatch:
    """A batch whose sampler saw every token at the same probability."""
    random = np.random.default_rng(seed)
    groups = [_group(sizes, vocab, random, f"g{index}") for index in range(sizes.groups)]
    return TrainBatch(step=1, version=0, publish_version=None, groups=groups, max_lag=0)


def rows_of(batch: TrainBatch) -> list[Row]:
    return [row for group in batch.groups for one in group.rollouts for row in one.rows]


def _group(sizes: Sizes, vocab: int, random: np.random.Generator, group_id: str) -> TrainGroup:
    prompt = random.integers(0, vocab, int(sizes.prompt * random.uniform(0.75, 1.25)))
    rollouts = [
        Rollout(
            group_id=group_id,
            member=member,
            attempt=0,
            task_id="pool/env/0",
            pool="pool",
            pool_version="1",
            env="env",
            seed=0,
            stop=StopReason.ANSWERED,
            reward=float(member % 2),
            rows=[_row(sizes, prompt, vocab, random)],
            turns=[],
        )
        for member in range(sizes.members)
    ]
    return TrainGroup(group_id=group_id, pool="pool", rollouts=rollouts)


def _row(sizes: Sizes, prompt: np.ndarray, vocab: int, random: np.random.Generator) -> Row:
    ids, masks, spans, length = [prompt], [np.zeros(len(prompt))], [], len(prompt)
    for _ in range(random.integers(1, sizes.turns + 1)):
        reply = max(1, int(random.lognormal(np.log(sizes.reply), _SPREAD)))
        observation = max(1, int(sizes.observation * random.uniform(0.5, 1.5)))
        ids.append(random.integers(0, vocab, reply + observation))
        masks += [np.ones(reply), np.zeros(observation)]
        spans.append(Span(version=0, start=length, end=length + reply))
        length += reply + observation
    mask = np.concatenate(masks)
    return Row.pack(np.concatenate(ids), -np.log(vocab) * mask, mask, spans)
