"""A `TrainBatch` becomes packed micro-batches of tensors; the lag bound is asserted here.

N: trained tokens of a micro-batch, row by row. Rows lie behind one another without padding, and
what the rows of a group have in common at their start lies there once: see `learner.layout`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.advantage import ADVANTAGES
from learner.layout import Packed, common_prefix, pack_rows
from rollout.types import LagError, Rollout, Row, TrainBatch, TrainGroup

# Trainable rows, each with its advantage.
_Rows = list[tuple[Row, float]]
# Rows that share their beginning, and how many tokens they are to compute.
_Family = tuple[_Rows, int]


@dataclass(slots=True, kw_only=True, frozen=True)
class MicroBatch:
    """Rows that are computed at once, and what is known of their trained tokens."""

    packed: Packed
    """`packed.rows_N` tells which tokens are of one row."""
    old_logprobs_N: Tensor
    """float32, of the distribution the token was sampled from."""
    advantages_N: Tensor
    """float32, that of the row's rollout."""
    versions_N: Tensor
    """int64, which weights sampled the token."""
    mixed_kv_N: Tensor
    """bool, True where the token was sampled on a cache that older weights filled."""

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            packed=self.packed.to(device),
            old_logprobs_N=self.old_logprobs_N.to(device),
            advantages_N=self.advantages_N.to(device),
            versions_N=self.versions_N.to(device),
            mixed_kv_N=self.mixed_kv_N.to(device),
        )


@dataclass(slots=True, kw_only=True, frozen=True)
class Batch:
    """What one optimizer step computes."""

    micro_batches: list[MicroBatch]
    num_trained_tokens: int
    """Denominator of the loss: counted before anything is clipped or masked."""


def pack(
    batch: TrainBatch, *, advantage: str, micro_batch_tokens: int, share_prefix: bool = True
) -> Batch:
    """Check the batch and cut it into micro-batches of at most `micro_batch_tokens` tokens.

    Tokens that rows share are counted once. A row longer than that is a micro-batch of its own.
    Rows without a trained token are left out. Raises LagError, and ValueError for a rollout without
    a verdict, for a row that cannot be trained on, and for a batch with nothing to train on.
    """
    check_lag(batch)
    families: list[_Family] = []
    for group in batch.groups:
        families += _families(_group_rows(group, advantage), micro_batch_tokens, share_prefix)
    if not families:
        raise ValueError(f"the batch of step {batch.step} has no token to train on")
    return Batch(
        micro_batches=[_micro_batch(part) for part in _parts(families, micro_batch_tokens)],
        num_trained_tokens=sum(int(row.mask.sum()) for rows, _ in families for row, _ in rows),
    )


def check_lag(batch: TrainBatch) -> None:
    """Raise LagError unless every sampled token is at most `max_lag` versions old, and none newer."""
    for group, rollout, row in _rows(batch):
        for span in row.spans:
            where = f"group {group.group_id!r} (member {rollout.member}), step {batch.step}"
            lag = batch.lineage.lag(span.version, at=batch.version)
            if lag < 0:
                raise LagError(
                    f"{where}: tokens sampled by version {span.version} are newer than version "
                    f"{batch.version}, at which the batch is computed"
                )
            if lag > batch.max_lag:
                raise LagError(
                    f"{where}: tokens sampled by version {span.version} are {lag} versions old at "
                    f"version {batch.version}; the bound is {batch.max_lag}"
                )


def _rows(batch: TrainBatch) -> Iterator[tuple[TrainGroup, Rollout, Row]]:
    for group in batch.groups:
        for rollout in group.rollouts:
            for row in rollout.rows:
                yield group, rollout, row


def _group_rows(group: TrainGroup, advantage: str) -> _Rows:
    """The trainable rows of a group, each with the advantage of its rollout."""
    try:
        advantages_G = ADVANTAGES[advantage]([rollout.reward for rollout in group.rollouts])
    except ValueError as error:
        raise ValueError(f"group {group.group_id!r}: {error}") from error
    rows: _Rows = []
    for rollout, value in zip(group.rollouts, advantages_G.tolist(), strict=True):
        for row in rollout.rows:
            _check_row(row, f"group {group.group_id!r}, member {rollout.member}")
            if row.mask.any():
                rows.append((row, value))
    return rows


def _check_row(row: Row, where: str) -> None:
    """Refuse what a record read from the wire may claim and training cannot honour."""
    num_tokens = len(row.token_ids)
    if not num_tokens == len(row.logprobs) == len(row.mask):
        lengths = f"{num_tokens}, {len(row.logprobs)}, {len(row.mask)}"
        raise ValueError(f"{where}: ids, log-probs and mask have different lengths: {lengths}")
    covered = np.zeros(num_tokens, dtype=np.uint8)
    for span in row.spans:
        covered[span.start : span.end] += 1
    if not np.array_equal(covered, row.mask):
        raise ValueError(f"{where}: spans do not cover exactly the masked tokens")
    if num_tokens and row.mask[0]:
        raise ValueError(
            f"{where}: the first token is masked for training, but nothing predicts it"
        )
    if not np.isfinite(row.logprobs[row.mask.astype(bool)]).all():
        raise ValueError(f"{where}: the sampler's log-probs of trained tokens are not all finite")


def _families(rows: _Rows, max_tokens: int, share_prefix: bool) -> list[_Family]:
    """Cut the rows of a group so that those which share their beginning fit a micro-batch."""
    prefix = common_prefix([row for row, _ in rows]) if share_prefix else 0
    if not prefix:
        return [([each], len(each[0].token_ids)) for each in rows]
    families: list[_Family] = []
    chosen, num_tokens = [], prefix
    for each in rows:
        more = len(each[0].token_ids) - prefix
        if chosen and num_tokens + more > max_tokens:
            families.append((chosen, num_tokens))
            chosen, num_tokens = [], prefix
        chosen.append(each)
        num_tokens += more
    return [*families, (chosen, num_tokens)]


def _parts(families: Sequence[_Family], max_tokens: int) -> list[list[_Rows]]:
    """Fill micro-batches, the largest families first, each into the first that has room for it."""
    parts: list[list[_Rows]] = []
    rooms: list[int] = []
    for rows, num_tokens in sorted(families, key=lambda family: -family[1]):
        index = next((i for i, room in enumerate(rooms) if room >= num_tokens), len(parts))
        if index == len(parts):
            parts.append([])
            rooms.append(max_tokens)
        parts[index].append(rows)
        rooms[index] -= num_tokens
    return parts


def _micro_batch(families: list[_Rows]) -> MicroBatch:
    old_logprobs, advantages, versions, mixed_kv = [], [], [], []
    for row, advantage in (each for rows in families for each in rows):
        trained = np.flatnonzero(row.mask)
        old_logprobs.append(row.logprobs[trained])
        advantages.append(np.full(len(trained), advantage))
        # Spans cover exactly the trained tokens, in any order.
        spans = sorted(row.spans, key=lambda span: span.start)
        lengths = [span.end - span.start for span in spans]
        versions.append(np.repeat([span.version for span in spans], lengths))
        mixed_kv.append(np.repeat([span.mixed_kv for span in spans], lengths))
    return MicroBatch(
        packed=pack_rows([[row for row, _ in rows] for rows in families]),
        old_logprobs_N=torch.from_numpy(np.concatenate(old_logprobs, dtype=np.float32)),
        advantages_N=torch.from_numpy(np.concatenate(advantages, dtype=np.float32)),
        versions_N=torch.from_numpy(np.concatenate(versions, dtype=np.int64)),
        mixed_kv_N=torch.from_numpy(np.concatenate(mixed_kv, dtype=np.bool_)),
    )
