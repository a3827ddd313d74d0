"""One training rank: a batch in, one AdamW step, perhaps a published version out.

A plain synchronous class; `rollout/cluster.py` gives it a process. What it minimises is
`learner/objective.py`'s, as `learner.loss` says.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.schema import LearnerSection, RunConfig
from learner.attention import use_packing
from learner.batch import Batch, MicroBatch, pack, split
from learner.checkpoint import ResumeState, read_learner_part, write_learner_part
from learner.correction import m2_bound
from learner.head import TokenLogprobs, check_head, token_logprobs
from learner.layers import compile_layers, recompute_layers
from learner.lora import adapt, adapter_of, switched_off
from learner.objective import Tokens, needs_proximal, objective
from learner.optimizer import Optimizer, warmup_lr
from learner.overlap import Overlapping
from learner.publish import Publisher, named_weights
from learner.ranks import Ranks
from learner.shard import Sharded, shard, whole_adapter, whole_weights
from learner.sums import Sums, sum_of
from learner.watch import LagStats, RatioStats
from rollout.model import load_model
from rollout.types import Busy, RankPlace, StepReport, TrainBatch, encode
from rollout.weights import Adapter, Manifest, WeightsError, run_id, version_log

if TYPE_CHECKING:
    from learner.nccl import Sender

# What the learner is called in `Busy` intervals.
WHO = "learner"


# Where a run keeps batches whose loss was no number.
BROKEN_BATCHES = "broken_batches"


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the weights did not move."""


# Micro-batches, each with whether it counts: one that does not only keeps the others company.
_Work = list[tuple[MicroBatch, bool]]


class Trainer:
    """Owns the weights being trained, their optimizer, and what they are published with."""

    def __init__(
        self,
        *,
        model_path: str | Path,
        dtype: str,
        section: LearnerSection,
        temperature: float,
        publisher: "Publisher | Overlapping | Sender | None",
        broken_dir: Path | None = None,
        ranks: Ranks | None = None,
        seed: int = 0,
        hands_over_adapter: bool = False,
    ) -> None:
        """Load the weights of step 0, of which each of several `ranks` keeps a part.

        All of them then make the same calls. `seed`: of adapters, if they are trained, which are all that
        is published with `hands_over_adapter`. `temperature` is that of training rollouts. A batch whose
        loss is no number is left in `broken_dir`, if given. Raises ModelError, and ValueError for a
        model or a temperature whose log-probs cannot be reproduced, or adapters that do not fit it.
        """
        if temperature <= 0:
            raise ValueError(
                f"rollout.temperature={temperature}: greedy tokens have no log-prob to train on; "
                "use a temperature above 0"
            )
        torch.set_num_threads(section.threads)
        self._model_path = Path(model_path)
        self._section = section
        self._temperature = temperature
        self._publisher = publisher
        self._broken_dir = broken_dir
        self._device = torch.device(device_of(section))
        self._ranks = ranks or Ranks()
        # Eval mode: dropout would make the ratio differ from 1 for the very weights that sampled.
        self.model = load_model(self._model_path, dtype).eval()
        self._dtype = self.model.dtype
        if section.lora.rank:
            adapt(self.model, section.lora, base=self._model_path, seed=seed)
        self._adapter = adapter_of(self.model)
        self._hands_over_adapter = hands_over_adapter
        self._passes = self._placed(self.model)
        self._reference = None
        if section.loss.kl_coef and self._adapter is None:
            frozen = load_model(self._model_path, dtype).eval().requires_grad_(False)
            self._reference = self._placed(frozen)
        self._optimizer = Optimizer(self.model, section)
        self._step = 0
        self._version = 0
        self._lr_factor = 1.0
        self._floor = 0

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def step(self) -> int:
        """The last step trained, 0 before the first."""
        return self._step

    @property
    def version(self) -> int:
        """The last version published, 0 (the weights of `model_path`) before the first."""
        return self._version

    def train(self, batch: TrainBatch) -> StepReport:
        """Take one optimizer step; publish when `batch.publish_version` says so.

        With `batch.rollback` the weights and the optimizer become those of that checkpoint, for good,
        and the learning rate half of what it was; what older versions sampled is not trained on any
        more. Raises NonFiniteLossError before the weights move; LagError and ValueError for a batch that
        must not be trained on; RuntimeError for one that is not the next step.
        """
        start_s = time.monotonic()
        if batch.step != self._step + 1:
            raise RuntimeError(
                f"batch of step {batch.step} after step {self._step}: each step is trained once, "
                "in order"
            )
        if batch.rollback:
            self._load(Path(batch.rollback))
            self._lr_factor /= 2.0
            self._floor = batch.version + 1
        try:
            metrics = self._train(batch)
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"{error}{self._keep_broken(batch)}") from None
        train_end_s = time.monotonic()
        metrics["time/train_s"] = train_end_s - start_s
        manifest = None
        if batch.publish_version is not None:
            manifest = self.publish(batch.publish_version, batch.step)
        end_s = time.monotonic()
        metrics["time/publish_s"] = end_s - train_end_s
        return StepReport(
            step=batch.step,
            version=batch.version,
            manifest=manifest,
            publishing=batch.publish_version if manifest is None else None,
            metrics=metrics,
            busy=[Busy(who=WHO, start_s=start_s, end_s=end_s)],
        )

    @property
    def sender(self) -> "Sender":
        """What sends weights to engines; raises WeightsError where they are handed over as files."""
        if self._publisher is None or isinstance(self._publisher, Publisher | Overlapping):
            raise WeightsError('weights are sent with weights.transport="nccl" alone')
        return self._publisher

    def publish(self, version: int, step: int) -> Manifest | None:
        """Hand the weights over as `version`; raises WeightsError unless versions increase.

        None where that goes on while the next step is trained: `published` then tells its end. None
        from a rank that only takes part, too.
        """
        publisher, manifest = self._publisher, None
        if publisher is None or isinstance(publisher, Publisher | Overlapping):
            weights, adapter = self._handed_over()
            if publisher is not None:
                manifest = publisher.publish(weights, version=version, step=step, adapter=adapter)
        else:
            made = (
                None if self._adapter is None else partial(whole_weights, self.model, self._dtype)
            )
            weights = named_weights(self.model)
            manifest = publisher.publish(weights, version=version, step=step, made=made)
        self._version = version
        return manifest

    def _handed_over(self) -> tuple[dict[str, Tensor], Adapter | None]:
        """What a file of a version has; every rank has to call this, and the first one gets it."""
        if self._hands_over_adapter:
            return whole_adapter(self.model, self._dtype), self._adapter
        if self._ranks.size == 1 and self._adapter is None:
            return named_weights(self.model), None
        whole = whole_weights(self.model, self._dtype)
        return {name: one.cpu() for name, one in whole if self._ranks.is_first}, None

    def published(self, version: int) -> Manifest:
        """Wait until a version is published that `train` said is being; may be called while it trains.

        Raises what it failed with.
        """
        if not isinstance(self._publisher, Overlapping):
            raise WeightsError(f"version {version} was published within its step")
        return self._publisher.published(version)

    def save(self, directory: str | Path) -> None:
        """Write `hf/` and what resuming needs into `directory`; raises CheckpointError.

        A version that could not be published is raised here: no checkpoint follows it.
        """
        if isinstance(self._publisher, Overlapping):
            self._publisher.wait()
        write_learner_part(
            Path(directory),
            model=self.model,
            optimizer=self._optimizer,
            dtype=self._dtype,
            tokenizer_source=self._model_path,
            state=ResumeState(
                step=self._step,
                version=self._version,
                lr_factor=self._lr_factor,
                floor=self._floor,
            ),
            ranks=self._ranks,
        )

    def restore(self, directory: str | Path) -> None:
        """Continue as the trainer that saved `directory` would; publishes nothing.

        Any number of ranks may have saved it. Raises CheckpointError.
        """
        state = self._load(Path(directory))
        self._step = state.step
        self._version = state.version
        self._lr_factor = state.lr_factor
        self._floor = state.floor

    def close(self) -> None:
        """Remove the published files, or leave the engines' groups; and leave the other ranks."""
        if self._publisher is not None:
            self._publisher.close()
        self._ranks.close()

    def _load(self, directory: Path) -> ResumeState:
        """Take over weights and optimizer of a checkpoint; returns the rest of it."""
        return read_learner_part(
            directory,
            optimizer=self._optimizer,
            adapter=self._adapter,
            dtype=self._dtype,
            ranks=self._ranks,
        )

    def _train(self, batch: TrainBatch) -> dict[str, float]:
        """Update the weights once for each part of the batch; returns the step's metrics."""
        section = self._section
        parts = [self._packed(part) for part in split(batch, section.updates_per_batch)]
        work = [self._work(part) for part in parts]
        proximal: list[list[Tensor] | None] = [None] * len(parts)
        if needs_proximal(section.loss):
            proximal = [self._logprobs_now(mine) for mine in work]
        lr = warmup_lr(batch.step, lr=section.lr, warmup_steps=section.warmup_steps)
        lr *= self._lr_factor
        updates: list[Sums] = []
        for packed, mine, start in zip(parts, work, proximal, strict=True):
            sums = self._backward(mine, start)
            self._check(batch.step, sums, len(updates))
            if not packed.is_left_out:  # else momentum alone would move the weights
                self._optimizer.step(lr)
            updates.append(sums)
        self._step = batch.step
        overlong = sum(part.overlong_frac for part in parts) / len(parts)
        return {**self._metrics(updates), "optim/lr": lr, "loss/overlong_frac": overlong}

    def _packed(self, batch: TrainBatch) -> Batch:
        """Cut into micro-batches: where ranks would else wait for each other, smaller than need be."""
        section, size = self._section, self._ranks.size
        cut = partial(
            pack,
            batch,
            loss=section.loss,
            share_prefix=section.share_prefix,
            floor=self._floor,
        )
        packed = cut(micro_batch_tokens=section.micro_batch_tokens)
        if size == 1:
            return packed
        share = max(1, sum(part.num_tokens for part in packed.micro_batches) // size)
        if share >= section.micro_batch_tokens:
            return packed
        # Not always better: what rows share is computed in each part that has some of them.
        return min(packed, cut(micro_batch_tokens=share), key=self._longest)

    def _longest(self, packed: Batch) -> int:
        """Tokens that are computed one after another, as ranks wait for each other in every pass."""
        numbers = sorted((part.num_tokens for part in packed.micro_batches), reverse=True)
        return sum(numbers[:: self._ranks.size])

    def _work(self, packed: Batch) -> _Work:
        """The micro-batches that this rank computes."""
        parts = packed.micro_batches
        dealt = self._ranks.deal([part.num_tokens for part in parts])
        return [(parts[index], counts) for index, counts in dealt]

    def _backward(self, work: _Work, proximal: list[Tensor] | None) -> Sums:
        """Leave the gradient of the batch's loss in the optimizer, its norm bounded.

        `proximal` has the log-probs of each micro-batch at the start of the step, if they are needed.
        What is returned is that of all ranks.
        """
        self._optimizer.zero_grad()
        loss, sums = self._section.loss, Sums()
        bound = self._m2_bound(work) if loss.correction == "m2po" else math.inf
        for i, (part, counts) in enumerate(work):
            tokens = self._tokens(part.to(self._device), proximal[i] if proximal else None)
            # Weights are those of the whole batch: the gradients of micro-batches then add up to its
            # own, however it was cut and dealt out.
            value = objective(loss, tokens, m2_bound=bound)
            (value.total if counts else value.total * 0.0).backward()
            if counts:
                sums.add(value, tokens)
        sums = sum_of(self._ranks.gather(sums))
        sums.grad_norm = self._optimizer.clip()
        return sums

    def _tokens(self, part: MicroBatch, proximal_N: Tensor | None = None) -> Tokens:
        """The trained tokens of a micro-batch under the weights of now."""
        reference_N = self._reference_logprobs(part) if self._section.loss.kl_coef else None
        now = self._forward(self._passes, part)
        return Tokens(
            logprobs_N=now.logprobs_N,
            entropy_N=now.entropy_N,
            old_logprobs_N=part.old_logprobs_N,
            advantages_N=part.advantages_N,
            weights_N=part.weights_N,
            rows_N=part.packed.rows_N,
            lags_N=part.lags_N,
            mixed_kv_N=part.mixed_kv_N,
            proximal_logprobs_N=proximal_N,
            reference_logprobs_N=reference_N,
        )

    @torch.no_grad()
    def _reference_logprobs(self, part: MicroBatch) -> Tensor:
        """[N] under the weights of step 0."""
        if self._reference is not None:
            return self._forward(self._reference, part).logprobs_N
        with switched_off(self.model):
            return self._forward(self._passes, part).logprobs_N

    def _forward(self, passes: PreTrainedModel | Sharded, part: MicroBatch) -> TokenLogprobs:
        def run(model: PreTrainedModel) -> TokenLogprobs:
            return token_logprobs(model, part.packed, temperature=self._temperature)

        return passes.score(run) if isinstance(passes, Sharded) else run(passes)

    @torch.no_grad()
    def _logprobs_now(self, work: _Work) -> list[Tensor]:
        """[N] of each micro-batch, under the weights of now."""
        parts = (part.to(self._device) for part, _ in work)
        return [self._forward(self._passes, part).logprobs_N for part in parts]

    def _m2_bound(self, work: _Work) -> float:
        """What `m2po` leaves out of this batch, by a pass over all of it."""
        found: list[tuple[Tensor, Tensor]] = []
        for (part, counts), new_N in zip(work, self._logprobs_now(work), strict=True):
            if counts:
                kept_N = part.weights_N != 0
                log_ratios_N = new_N.cpu() - part.old_logprobs_N
                found.append((log_ratios_N[kept_N], part.advantages_N[kept_N]))
        everyone = [pair for of_rank in self._ranks.gather(found) for pair in of_rank]
        log_ratios, advantages = zip(*everyone, strict=True)
        budget = self._section.loss.m2po_budget
        return m2_bound(torch.cat(log_ratios), torch.cat(advantages), budget=budget)

    def _placed(self, model: PreTrainedModel) -> PreTrainedModel | Sharded:
        """What runs passes through the model: on its device, or spread over the ranks."""
        if self._ranks.size == 1:
            nn.Module.to(model, self._device)
        check_head(model)
        use_packing(model)
        if self._section.compile:
            compile_layers(model)
        if self._section.activation_checkpointing:
            recompute_layers(model)
        return shard(model, self._ranks) if self._ranks.size > 1 else model

    def _check(self, step: int, sums: Sums, num_updates: int) -> None:
        """Raise NonFiniteLossError for numbers with which the weights must not move."""
        if math.isfinite(sums.loss) and math.isfinite(sums.grad_norm):
            return
        moved = f" and {num_updates} of its updates" if num_updates else ""
        raise NonFiniteLossError(
            f"step {step}: loss {sums.loss}, gradient norm {sums.grad_norm}, largest |log ratio| to "
            f"the sampler {sums.ratios.max_abs_log_ratio}; the weights are still those of step "
            f"{self._step}{moved}"
        )

    def _metrics(self, updates: Sequence[Sums]) -> dict[str, float]:
        """Of a step: means over its updates, and over their tokens."""
        num_updates = len(updates)
        num_tokens = sum(sums.num_tokens for sums in updates)
        values = {
            "loss/total": sum(sums.loss for sums in updates) / num_updates,
            "loss/policy": sum(sums.policy for sums in updates) / num_updates,
            "loss/entropy": sum(sums.entropy for sums in updates) / num_tokens,
            **sum((sums.ratios for sums in updates), RatioStats()).metrics(),
            **sum((sums.lags for sums in updates), LagStats()).metrics(),
            "optim/grad_norm": sum(sums.grad_norm for sums in updates) / num_updates,
            "perf/trained_tokens": float(num_tokens),
        }
        if self._section.loss.kl_coef:
            values["loss/kl_ref"] = sum(sums.kl for sums in updates) / num_updates
        return values

    def _keep_broken(self, batch: TrainBatch) -> str:
        """Write a batch down for a person to look at; returns what to say of it."""
        if self._broken_dir is None or not self._ranks.is_first:
            return ""
        path = self._broken_dir / f"step_{batch.step:06d}.msgpack"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(batch))
        except OSError as error:  # what is wrong with the batch matters more
            return f"; the batch could not be kept: {error}"
        return f"; the batch is in {path} (rollout.types.decode_batch(Path(...).read_bytes()) reads it)"


def device_of(section: LearnerSection) -> str:
    """Where the learner computes."""
    return "cuda" if section.num_gpus else "cpu"


def make_trainer(
    config: RunConfig,
    run_dir: Path,
    checkpoint: Path | None = None,
    place: RankPlace | None = None,
) -> Trainer:
    """The trainer of a run, as `checkpoint` has it where one is given.

    With a `place` it is one of several, and waits for the others. Its weight files carry the run
    directory's name. Raises RanksError when the others do not come.
    """
    section, ranks = config.learner, Ranks()
    if place is not None:
        torch.set_num_threads(section.threads)
        ranks = Ranks.meet(place, device=device_of(section), deadline_s=section.deadline_s)
    trainer = Trainer(
        model_path=config.model.path,
        dtype=config.model.dtype,
        section=section,
        temperature=config.rollout.temperature,
        publisher=_publisher(config, run_dir, ranks),
        broken_dir=run_dir / BROKEN_BATCHES,
        ranks=ranks,
        seed=config.run.seed,
        hands_over_adapter=config.engine.kind == "vllm" and config.engine.vllm.lora_rank > 0,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


def _publisher(config: RunConfig, run_dir: Path, ranks: Ranks) -> "Overlapping | Sender | None":
    """What hands the weights of a run over; None where another rank does."""
    section, log = config.weights, version_log(run_dir)
    if section.is_sent:
        from learner.nccl import Sender  # it brings vLLM

        return Sender(
            log=log,
            num_workers=config.engine.vllm.tensor_parallel,
            buffer_bytes=section.buffer_mb << 20,
            num_buffers=section.num_buffers,
            rank=ranks.rank,
            dtype=getattr(torch, config.model.dtype),
        )
    if not ranks.is_first:
        return None
    return Overlapping(
        Publisher(
            directory=section.dir, fallback=run_dir / "weights", run_id=run_id(run_dir), log=log
        )
    )
