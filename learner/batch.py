"""A `TrainBatch` becomes right-padded micro-batches of tensors; the lag bound is asserted here.

B: rows of a micro-batch. T: tokens of its longest row. Position i of every array is token i, which
is predicted from position i - 1. Rows are padded on the right, so that under causal attention no
real token sees the padding and no attention mask is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import Tensor

from configs.loss import LossSection
from learner.advantage import ADVANTAGES
from learner.loss import AGGREGATIONS, overlong_penalty
from rollout.types import LagError, Rollout, Row, TrainBatch, TrainGroup

# Marks the positions of `lags_BT` that no weights sampled.
NOT_SAMPLED = -1


@dataclass(slots=True, kw_only=True, frozen=True)
class MicroBatch:
    """Rows that are computed at once. Padding has id 0 and mask False."""

    ids_BT: Tensor
    """int64"""
    old_logprobs_BT: Tensor
    """float32, of the distribution the token was sampled from; 0 where the mask is False."""
    advantages_BT: Tensor
    """float32, that of the row's rollout at every position."""
    mask_BT: Tensor
    """bool, True exactly where the token was sampled by the policy."""
    weights_BT: Tensor
    """float32, what the token's loss is multiplied by; 0 where the mask is False or it is left out."""
    lags_BT: Tensor
    """int64, versions since the weights that sampled the token; `NOT_SAMPLED` where the mask is False."""
    mixed_kv_BT: Tensor
    """bool, True where the token was sampled on a cache that older weights filled."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed."""
        return self.ids_BT.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            ids_BT=self.ids_BT.to(device),
            old_logprobs_BT=self.old_logprobs_BT.to(device),
            advantages_BT=self.advantages_BT.to(device),
            mask_BT=self.mask_BT.to(device),
            weights_BT=self.weights_BT.to(device),
            lags_BT=self.lags_BT.to(device),
            mixed_kv_BT=self.mixed_kv_BT.to(device),
        )


@dataclass(slots=True, kw_only=True, frozen=True)
class Batch:
    """What one optimizer step computes."""

    micro_batches: list[MicroBatch]
    num_trained_tokens: int
    """Counted before anything is clipped or left out."""
    is_left_out: bool
    """Whether no token of it has a weight: there is nothing to step by."""
    overlong_frac: float
    """Share of its rollouts that a budget cut off, whatever is done about them."""


def split(batch: TrainBatch, num_parts: int) -> list[TrainBatch]:
    """Cut a batch into parts of like many whole groups, at most one for each group."""
    num_parts = min(num_parts, len(batch.groups))
    return [
        msgspec.structs.replace(batch, groups=batch.groups[part::num_parts])
        for part in range(num_parts)
    ]


def pack(batch: TrainBatch, *, loss: LossSection, micro_batch_tokens: int, floor: int = 0) -> Batch:
    """Check the batch and cut it into micro-batches of at most `micro_batch_tokens` padded tokens.

    A row longer than that is a micro-batch of its own. Rows without a trained token are left out.
    The weight of each token is fixed here, over the whole batch; then rows with a token of a version
    below `floor` are left out, and rollouts that a budget cut off, where that is asked. Raises LagError, and ValueError for a
    rollout without a verdict, for a row that cannot be trained on, and for a batch with nothing to
    train on.
    """
    check_lag(batch)
    rollouts = [one for group in batch.groups for one in _group_rollouts(group, loss)]
    if not rollouts:
        raise ValueError(f"the batch of step {batch.step} has no token to train on")
    num_tokens_R = [sum(int(row.mask.sum()) for row in one.rows) for one in rollouts]
    weights_R = AGGREGATIONS[loss.aggregation](num_tokens_R, loss.constant_tokens)
    rows = [
        _TrainedRow(
            row=row,
            advantage=one.advantage,
            weight=0.0 if _is_left_out(row, one, loss, floor) else weight,
        )
        for one, weight in zip(rollouts, weights_R, strict=True)
        for row in one.rows
    ]
    # Rows of like length share a micro-batch: less padding.
    rows.sort(key=lambda one: -len(one.row.token_ids))
    return Batch(
        micro_batches=[_pad(part, batch) for part in _parts(rows, micro_batch_tokens)],
        num_trained_tokens=sum(num_tokens_R),
        is_left_out=not any(one.weight for one in rows),
        overlong_frac=sum(one.is_overlong for one in rollouts) / len(rollouts),
    )


@dataclass(slots=True, kw_only=True, frozen=True)
class _TrainedRollout:
    """A rollout with a token to train on, and its rows that have one."""

    rows: list[Row]
    advantage: float
    is_overlong: bool


@dataclass(slots=True, kw_only=True, frozen=True)
class _TrainedRow:
    row: Row
    advantage: float
    weight: float
    """Of each of its trained tokens."""


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


def _group_rollouts(group: TrainGroup, loss: LossSection) -> list[_TrainedRollout]:
    """The trainable rollouts of a group with their advantages, which all of its members decide."""
    try:
        advantages_G = ADVANTAGES[loss.advantage]([_reward(one, loss) for one in group.rollouts])
    except ValueError as error:
        raise ValueError(f"group {group.group_id!r}: {error}") from error
    trained: list[_TrainedRollout] = []
    for rollout, advantage in zip(group.rollouts, advantages_G.tolist(), strict=True):
        for row in rollout.rows:
            _check_row(row, f"group {group.group_id!r}, member {rollout.member}")
        rows = [row for row in rollout.rows if row.mask.any()]
        if rows:
            is_overlong = rollout.stop.is_truncated
            trained.append(_TrainedRollout(rows=rows, advantage=advantage, is_overlong=is_overlong))
    return trained


def _is_left_out(row: Row, of: _TrainedRollout, loss: LossSection, floor: int) -> bool:
    is_old = any(span.version < floor for span in row.spans)
    return is_old or (of.is_overlong and loss.overlong == "mask")


def _reward(rollout: Rollout, loss: LossSection) -> float | None:
    """The environment's verdict, less what the rollout's longest row costs."""
    if loss.overlong != "penalize" or rollout.reward is None:
        return rollout.reward
    longest = max((len(row.token_ids) for row in rollout.rows), default=0)
    return rollout.reward - overlong_penalty(
        longest, start=loss.overlong_start, end=loss.overlong_end
    )


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


def _parts(rows: list[_TrainedRow], max_tokens: int) -> Iterator[list[_TrainedRow]]:
    """Cut rows, longest first, into runs of at most `max_tokens` padded tokens."""
    start = 0
    while start < len(rows):
        # The first row of a part is its longest: it sets the width of the padding.
        width = len(rows[start].row.token_ids)
        num_rows = max(1, max_tokens // width)
        yield rows[start : start + num_rows]
        start += num_rows


def _pad(rows: list[_TrainedRow], batch: TrainBatch) -> MicroBatch:
    shape = len(rows), max(len(one.row.token_ids) for one in rows)
    ids = np.zeros(shape, dtype=np.int64)
    old_logprobs = np.zeros(shape, dtype=np.float32)
    advantages = np.zeros(shape, dtype=np.float32)
    mask = np.zeros(shape, dtype=np.bool_)
    weights = np.zeros(shape, dtype=np.float32)
    lags = np.full(shape, NOT_SAMPLED, dtype=np.int64)
    mixed_kv = np.zeros(shape, dtype=np.bool_)
    for i, one in enumerate(rows):
        row, num_tokens = one.row, len(one.row.token_ids)
        ids[i, :num_tokens] = row.token_ids
        old_logprobs[i, :num_tokens] = np.where(row.mask, row.logprobs, 0.0)
        advantages[i] = one.advantage
        mask[i, :num_tokens] = row.mask
        weights[i, :num_tokens] = one.weight * row.mask
        for span in row.spans:
            lag = batch.lineage.lag(span.version, at=batch.version)
            lags[i, span.start : span.end] = lag
            mixed_kv[i, span.start : span.end] = span.mixed_kv
    return MicroBatch(
        ids_BT=torch.from_numpy(ids),
        old_logprobs_BT=torch.from_numpy(old_logprobs),
        advantages_BT=torch.from_numpy(advantages),
        mask_BT=torch.from_numpy(mask),
        weights_BT=torch.from_numpy(weights),
        lags_BT=torch.from_numpy(lags),
        mixed_kv_BT=torch.from_numpy(mixed_kv),
    )
