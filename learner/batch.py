"""A `TrainBatch` becomes packed micro-batches of tensors; the lag bound is asserted here.

N: trained tokens of a micro-batch, row by row. Rows lie behind one another without padding, and
what the rows of a group have in common at their start lies there once: see `learner.layout`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor

from configs.loss import LossSection
from learner.advantage import ADVANTAGES
from learner.layout import Packed, common_prefix, pack_rows
from learner.loss import AGGREGATIONS, overlong_penalty
from rollout.types import LagError, Rollout, Row, TrainBatch, TrainGroup

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, frozen=True)
class MicroBatch:
    """Rows that are computed at once, and what is known of their trained tokens."""

    packed: Packed
    """`packed.rows_N` tells which tokens are of one row."""
    old_logprobs_N: Tensor
    """float32, of the distribution the token was sampled from."""
    advantages_N: Tensor
    """float32, that of the row's rollout."""
    weights_N: Tensor
    """float32, what the token's loss is multiplied by; 0 where it is left out."""
    lags_N: Tensor
    """int64, versions since the weights that sampled the token."""
    mixed_kv_N: Tensor
    """bool, True where the token was sampled on a cache that older weights filled."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are computed."""
        return len(self.packed.ids_P)

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            packed=self.packed.to(device),
            old_logprobs_N=self.old_logprobs_N.to(device),
            advantages_N=self.advantages_N.to(device),
            weights_N=self.weights_N.to(device),
            lags_N=self.lags_N.to(device),
            mixed_kv_N=self.mixed_kv_N.to(device),
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


def pack(
    batch: TrainBatch,
    *,
    loss: LossSection,
    micro_batch_tokens: int,
    share_prefix: bool = True,
    floor: int = 0,
) -> Batch:
    """Check the batch and cut it into micro-batches of at most `micro_batch_tokens` tokens.

    Tokens that rows share are counted once. A row longer than that is a micro-batch of its own. Rows
    without a trained token are left out. The weight of each token is fixed here, over the whole batch;
    then rows with a token of a version below `floor` are left out, and rollouts that a budget cut off,
    where that is asked. Raises LagError, and ValueError for a rollout without a verdict, for a row that
    cannot be trained on, and for a batch with nothing to train on.
    """
    check_lag(batch)
    groups = [_group_rollouts(group, loss) for group in batch.groups]
    rollouts = [one for group in groups for one in group]
    if not rollouts:
        raise ValueError(f"the batch of step {batch.step} has no token to train on")
    num_tokens_R = [sum(int(row.mask.sum()) for row in one.rows) for one in rollouts]
    weights_R = iter(AGGREGATIONS[loss.aggregation](num_tokens_R, loss.constant_tokens))
    families: list[_Family] = []
    for group in groups:
        rows = []
        for one in group:
            weight = next(weights_R)
            rows += [
                _TrainedRow(
                    row=row,
                    advantage=one.advantage,
                    weight=0.0 if _is_left_out(row, one, loss, floor) else weight,
                )
                for row in one.rows
            ]
        families += _families(rows, micro_batch_tokens, share_prefix)
    return Batch(
        micro_batches=[_micro_batch(part, batch) for part in fill(families, micro_batch_tokens)],
        num_trained_tokens=sum(num_tokens_R),
        is_left_out=not any(one.weight for rows, _ in families for one in rows),
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


# Rows that share their beginning, and how many tokens they are to compute.
_Family = tuple[list[_TrainedRow], int]


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
    covered = np.zeros(num_tokens, dtype=np.int64)
    for span in row.spans:
        covered[max(0, span.start) : span.end] += 1
    num_covered = sum(span.end - span.start for span in row.spans)
    is_once = num_covered == np.count_nonzero(row.mask)
    if not (is_once and np.array_equal(covered, row.mask)):
        raise ValueError(f"{where}: spans do not cover exactly the masked tokens")
    if num_tokens and row.mask[0]:
        raise ValueError(
            f"{where}: the first token is masked for training, but nothing predicts it"
        )
    if not np.isfinite(row.logprobs[row.mask.astype(bool)]).all():
        raise ValueError(f"{where}: the sampler's log-probs of trained tokens are not all finite")


def _families(rows: Sequence[_TrainedRow], max_tokens: int, share_prefix: bool) -> list[_Family]:
    """Cut the rows of a group so that those which share their beginning fit a micro-batch."""
    prefix = common_prefix([one.row for one in rows]) if share_prefix else 0
    if not prefix:
        return [([one], len(one.row.token_ids)) for one in rows]
    families: list[_Family] = []
    chosen, num_tokens = [], prefix
    for one in rows:
        more = len(one.row.token_ids) - prefix
        if chosen and num_tokens + more > max_tokens:
            families.append((chosen, num_tokens))
            chosen, num_tokens = [], prefix
        chosen.append(one)
        num_tokens += more
    return [*families, (chosen, num_tokens)]


def fill(families: Sequence[tuple[T, int]], max_tokens: int) -> list[list[T]]:
    """Fill micro-batches, the largest families first, each into the first that has room for it.

    A family comes with its tokens; one of more than `max_tokens` is a micro-batch of its own.
    """
    parts: list[list[T]] = []
    rooms: list[int] = []
    for rows, num_tokens in sorted(families, key=lambda family: -family[1]):
        index = next((i for i, room in enumerate(rooms) if room >= num_tokens), len(parts))
        if index == len(parts):
            parts.append([])
            rooms.append(max_tokens)
        parts[index].append(rows)
        rooms[index] -= num_tokens
    return parts


def _micro_batch(families: list[list[_TrainedRow]], batch: TrainBatch) -> MicroBatch:
    old_logprobs, advantages, weights, lags, mixed_kv = [], [], [], [], []
    for one in (one for rows in families for one in rows):
        row = one.row
        trained = np.flatnonzero(row.mask)
        old_logprobs.append(row.logprobs[trained])
        advantages.append(np.full(len(trained), one.advantage))
        weights.append(np.full(len(trained), one.weight))
        # Spans cover exactly the trained tokens, in any order.
        spans = sorted(row.spans, key=lambda span: span.start)
        lengths = [span.end - span.start for span in spans]
        ages = [batch.lineage.lag(span.version, at=batch.version) for span in spans]
        lags.append(np.repeat(ages, lengths))
        mixed_kv.append(np.repeat([span.mixed_kv for span in spans], lengths))
    return MicroBatch(
        packed=pack_rows([[one.row for one in rows] for rows in families]),
        old_logprobs_N=torch.from_numpy(np.concatenate(old_logprobs, dtype=np.float32)),
        advantages_N=torch.from_numpy(np.concatenate(advantages, dtype=np.float32)),
        weights_N=torch.from_numpy(np.concatenate(weights, dtype=np.float32)),
        lags_N=torch.from_numpy(np.concatenate(lags, dtype=np.int64)),
        mixed_kv_N=torch.from_numpy(np.concatenate(mixed_kv, dtype=np.bool_)),
    )
