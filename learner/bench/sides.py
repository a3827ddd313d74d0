"""One optimizer step, twice: as the learner takes it, and as trainers with padded batches do.

The loss is the same on both sides, and both have float32 weights behind a bfloat16 computation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from configs.loss import LossSection
from configs.schema import LearnerSection
from learner.attention import use_packing
from learner.batch import pack
from learner.bench.shapes import make_model, step_flops
from learner.head import token_logprobs
from learner.layers import recompute_layers
from learner.optimizer import Optimizer
from rollout.types import Row, TrainBatch

_LR, _CLIP = 1e-5, 0.2


@dataclass(slots=True, kw_only=True, frozen=True)
class Work:
    """What both sides are given."""

    model: str
    dtype: str
    micro_batch_tokens: int
    recompute: bool
    """Whether layers are computed again in the backward pass."""


class Ours:
    """The learner's own parts."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self.model = make_model(work.model, getattr(torch, work.dtype), device)
        use_packing(self.model)
        if work.recompute:
            recompute_layers(self.model)
        self._work = work
        self._device = device
        self._optimizer = Optimizer(self.model, LearnerSection())

    def step(self, batch: TrainBatch) -> float:
        """Returns the loss."""
        packed = pack(batch, loss=LossSection(), micro_batch_tokens=self._work.micro_batch_tokens)
        total = 0.0
        for part in packed.micro_batches:
            there = part.to(self._device)
            tokens = token_logprobs(self.model, there.packed, temperature=1.0)
            loss = _surrogate(tokens.logprobs_N, there.old_logprobs_N, there.advantages_N)
            (loss / packed.num_trained_tokens).backward()
            total += loss.item()
        self._optimizer.clip()
        self._optimizer.step(_LR)
        return total / packed.num_trained_tokens

    def flops(self, batch: TrainBatch) -> float:
        """Of a step, as the layout has it."""
        packed = pack(batch, loss=LossSection(), micro_batch_tokens=self._work.micro_batch_tokens)
        families = [
            family for part in packed.micro_batches for family in part.packed.layout.families
        ]
        pairs = 0
        for family in families:
            prefix = family.prefix_end - family.start
            sizes = [end - start for start, end in family.suffixes]
            pairs += prefix**2 // 2 + sum(prefix * size + size**2 // 2 for size in sizes)
        return step_flops(
            self.model,
            self._work.model,
            tokens=sum(len(part.packed.ids_P) for part in packed.micro_batches),
            targets=packed.num_trained_tokens,
            pairs=pairs,
        )


class Padded:
    """Prompts padded on the left and completions on the right, logits of every completion token.

    As TRL's GRPO trainer with transformers: autocast, a mask for the padding, the log-probs row by
    row from the logits of the whole micro-batch, entropies without gradient, fused AdamW.
    """

    def __init__(self, work: Work, device: torch.device) -> None:
        self.model = make_model(work.model, torch.float32, device)
        if work.recompute:
            recompute_layers(self.model)
        self._work = work
        self._device = device
        self._adamw = torch.optim.AdamW(self.model.parameters(), lr=_LR, fused=True)

    def step(self, batch: TrainBatch) -> float:
        """Returns the loss."""
        rows: list[tuple[Row, float]] = []
        for group in batch.groups:
            rewards = np.array([one.reward for one in group.rollouts], dtype=np.float64)
            values = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            for one, value in zip(group.rollouts, values.tolist(), strict=True):
                rows += [(row, value) for row in one.rows]
        count = sum(int(row.mask.sum()) for row, _ in rows)
        total = 0.0
        for part in _padded_parts(rows, self._work.micro_batch_tokens):
            loss = self._loss([row for row, _ in part], [value for _, value in part])
            (loss / count).backward()
            total += loss.item()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return total / count

    def flops(self, batch: TrainBatch) -> float:
        """Of a step on the tokens of each row, without the padding."""
        rows = [row for group in batch.groups for one in group.rollouts for row in one.rows]
        lengths = [len(row.token_ids) for row in rows]
        return step_flops(
            self.model,
            self._work.model,
            tokens=sum(lengths),
            targets=sum(int(row.mask.sum()) for row in rows),
            pairs=sum(length**2 // 2 for length in lengths),
        )

    def _loss(self, rows: Sequence[Row], advantages: Sequence[float]) -> Tensor:
        ids_BT, mask_BT, trained_BC, old_BC = (one.to(self._device) for one in _padded(rows))
        completion = trained_BC.shape[1]
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self._work.dtype == "bfloat16"
        ):
            logits_BCV = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                logits_to_keep=completion + 1,
                use_cache=False,
            ).logits[:, :-1]
        targets_BC = ids_BT[:, -completion:]
        logprobs_BC = _selected(logits_BCV, targets_BC)
        _entropies(logits_BCV)
        advantages_BC = torch.tensor(advantages, device=self._device)[:, None].expand_as(old_BC)
        return _surrogate(
            logprobs_BC[trained_BC].float(), old_BC[trained_BC], advantages_BC[trained_BC]
        )


SIDES: dict[str, type[Ours] | type[Padded]] = {"ours": Ours, "padded": Padded}


def _surrogate(logprobs_N: Tensor, old_N: Tensor, advantages_N: Tensor) -> Tensor:
    ratio_N = (logprobs_N - old_N).exp()
    clipped_N = ratio_N.clamp(1.0 - _CLIP, 1.0 + _CLIP)
    return -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N).sum()


def _prompt_size(row: Row) -> int:
    """Tokens before the first trained one."""
    return int(np.flatnonzero(row.mask)[0])


def _padded_parts(
    rows: list[tuple[Row, float]], max_tokens: int
) -> Iterator[list[tuple[Row, float]]]:
    """Rows in their order, as many as stay within `max_tokens` with their padding."""
    part: list[tuple[Row, float]] = []
    for each in rows:
        more = [*part, each]
        prompt = max(_prompt_size(row) for row, _ in more)
        completion = max(len(row.token_ids) - _prompt_size(row) for row, _ in more)
        if part and len(more) * (prompt + completion) > max_tokens:
            yield part
            part = []
        part.append(each)
    yield part


def _padded(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids and attention mask [B, T]; of the C completion tokens which are trained, old log-probs."""
    prompts = [_prompt_size(row) for row in rows]
    prompt = max(prompts)
    completion = max(len(row.token_ids) - size for row, size in zip(rows, prompts, strict=True))
    ids = np.zeros((len(rows), prompt + completion), dtype=np.int64)
    mask = np.zeros_like(ids)
    trained = np.zeros((len(rows), completion), dtype=np.bool_)
    old = np.zeros((len(rows), completion), dtype=np.float32)
    for i, (row, size) in enumerate(zip(rows, prompts, strict=True)):
        place = slice(prompt - size, prompt - size + len(row.token_ids))
        ids[i, place], mask[i, place] = row.token_ids, 1
        own = slice(0, len(row.token_ids) - size)
        trained[i, own], old[i, own] = row.mask[size:], row.logprobs[size:]
    ids_BT, mask_BT, trained_BC, old_BC = map(torch.from_numpy, (ids, mask, trained, old))
    return ids_BT, mask_BT, trained_BC, old_BC


def _selected(logits_BCV: Tensor, targets_BC: Tensor) -> Tensor:
    """Log-probs of the targets; row by row, so that no second [B, C, V] is made."""
    if logits_BCV.dtype == torch.float32:
        chosen_BC = logits_BCV.gather(-1, targets_BC[..., None])[..., 0]
        return chosen_BC - torch.stack([row.logsumexp(-1) for row in logits_BCV])
    return torch.stack(
        [
            row.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            for row, targets in zip(logits_BCV, targets_BC, strict=True)
        ]
    )


@torch.no_grad()
def _entropies(logits_BCV: Tensor) -> Tensor:
    rows = []
    for logits in logits_BCV:
        logprobs = logits.log_softmax(-1)
        rows.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.stack(rows)
