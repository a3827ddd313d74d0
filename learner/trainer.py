"""One training rank: a batch in, one AdamW step, perhaps a published version out.

A plain synchronous class; `rollout/cluster.py` gives it a process. The loss is
`advantage x PPO clip against the sampler's log-probs / trained tokens`, see `learner/loss.py`.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from configs.schema import LearnerSection, RunConfig
from learner.batch import Batch, MicroBatch, pack
from learner.checkpoint import ResumeState, read_resume, write_learner_part
from learner.head import TokenLogprobs, check_head, token_logprobs
from learner.loss import RatioStats, clipped_loss, ratio_stats
from learner.optimizer import Optimizer, warmup_lr
from learner.overlap import Overlapping
from learner.publish import Publisher, named_weights
from rollout.model import load_model
from rollout.types import Busy, StepReport, TrainBatch
from rollout.weights import Manifest, WeightsError, run_id, version_log

if TYPE_CHECKING:
    from learner.nccl import Sender

# What the learner is called in `Busy` intervals.
WHO = "learner"


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is NaN or infinite; the weights did not move."""


@dataclass(slots=True, kw_only=True)
class _Sums:
    """Over the trained tokens of a batch, summed micro-batch by micro-batch."""

    loss: float = 0.0
    entropy: float = 0.0
    gap_lag0: float = 0.0
    num_lag0: float = 0.0
    ratios: RatioStats = field(default_factory=RatioStats)


class Trainer:
    """Owns the weights being trained, their optimizer, and what they are published with."""

    def __init__(
        self,
        *,
        model_path: str | Path,
        dtype: str,
        section: LearnerSection,
        temperature: float,
        publisher: "Publisher | Overlapping | Sender",
    ) -> None:
        """Load the weights of step 0.

        `temperature` is that of training rollouts. Raises ModelError, and ValueError for a model or
        a temperature whose log-probs cannot be reproduced.
        """
        if temperature <= 0:
            raise ValueError(
                f"rollout.temperature={temperature}: greedy tokens have no log-prob to train on; "
                "use a temperature above 0"
            )
        torch.set_num_threads(section.threads)
        self._model_path = Path(model_path)
        self._dtype = dtype
        self._section = section
        self._temperature = temperature
        self._publisher = publisher
        self._device = torch.device("cuda" if section.num_gpus else "cpu")
        # Eval mode: dropout would make the ratio differ from 1 for the very weights that sampled.
        self.model = load_model(self._model_path, dtype).eval()
        nn.Module.to(self.model, self._device)
        check_head(self.model)
        self._optimizer = Optimizer(self.model, section)
        self._step = 0
        self._version = 0

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

        Raises NonFiniteLossError before the weights move; LagError and ValueError for a batch that
        must not be trained on; RuntimeError for one that is not the next step.
        """
        start_s = time.monotonic()
        if batch.step != self._step + 1:
            raise RuntimeError(
                f"batch of step {batch.step} after step {self._step}: each step is trained once, "
                "in order"
            )
        packed = pack(
            batch,
            advantage=self._section.advantage,
            micro_batch_tokens=self._section.micro_batch_tokens,
        )
        sums = self._backward(packed, batch.version)
        metrics = self._apply(batch.step, sums, packed.num_trained_tokens)
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
        if isinstance(self._publisher, Publisher | Overlapping):
            raise WeightsError('weights are sent with weights.transport="nccl" alone')
        return self._publisher

    def publish(self, version: int, step: int) -> Manifest | None:
        """Hand the weights over as `version`; raises WeightsError unless versions increase.

        None where that goes on while the next step is trained: `published` then tells its end.
        """
        manifest = self._publisher.publish(named_weights(self.model), version=version, step=step)
        self._version = version
        return manifest

    def published(self, version: int) -> Manifest:
        """Wait until a version is published that `train` said is being; may be called while it trains.

        Raises what it failed with.
        """
        if not isinstance(self._publisher, Overlapping):
            raise WeightsError(f"version {version} was published within its step")
        return self._publisher.published(version)

    def save(self, directory: str | Path) -> None:
        """Write `hf/` and `resume/trainer.pt` into `directory`; raises CheckpointError.

        A version that could not be published is raised here: no checkpoint follows it.
        """
        if isinstance(self._publisher, Overlapping):
            self._publisher.wait()
        write_learner_part(
            Path(directory),
            model=self.model,
            tokenizer_source=self._model_path,
            state=ResumeState(
                step=self._step, version=self._version, optimizer=self._optimizer.state()
            ),
        )

    def restore(self, directory: str | Path) -> None:
        """Continue as the trainer that saved `directory` would; publishes nothing.

        Raises CheckpointError, ModelError, and ValueError for a checkpoint of another `dtype`.
        """
        state = read_resume(Path(directory))
        saved = load_model(Path(directory) / "hf", self._dtype)
        self.model.load_state_dict(saved.state_dict())
        self._optimizer.load(state.optimizer)
        self._step = state.step
        self._version = state.version

    def close(self) -> None:
        """Remove the published files, or leave the engines' groups."""
        self._publisher.close()

    def _backward(self, packed: Batch, version: int) -> _Sums:
        """Leave the gradient of the batch's mean loss in the optimizer."""
        self._optimizer.zero_grad()
        sums = _Sums()
        for part in packed.micro_batches:
            loss = self._micro_loss(part.to(self._device), version, sums)
            # Divided by the whole batch's count: the gradients of micro-batches then add up to
            # that of the batch, however it was cut.
            (loss / packed.num_trained_tokens).backward()
            self._optimizer.accumulate()
        return sums

    def _micro_loss(self, part: MicroBatch, version: int, sums: _Sums) -> Tensor:
        """The summed loss of a micro-batch, with gradient; adds what is watched to `sums`."""
        tokens = token_logprobs(
            self.model, part.ids_BT, part.mask_BT, temperature=self._temperature
        )
        old_logprobs_N = part.old_logprobs_BT[part.mask_BT]
        advantages_N = part.advantages_BT[part.mask_BT]
        mask_N = torch.ones_like(advantages_N, dtype=torch.bool)
        clip_low, clip_high = self._section.clip_low, self._section.clip_high
        arguments = (tokens.logprobs_N, old_logprobs_N, advantages_N, mask_N)
        loss = clipped_loss(*arguments, clip_low=clip_low, clip_high=clip_high)
        sums.loss += loss.item()
        sums.ratios += ratio_stats(*arguments, clip_low=clip_low, clip_high=clip_high)
        _watch(sums, tokens, part, version)
        return loss

    def _apply(self, step: int, sums: _Sums, num_trained_tokens: int) -> dict[str, float]:
        """Move the weights, unless the numbers are broken; returns the step's metrics."""
        loss = sums.loss / num_trained_tokens
        grad_norm = self._optimizer.clip()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteLossError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}, largest |log ratio| to the "
                f"sampler {sums.ratios.max_abs_log_ratio}; the weights are still those of step "
                f"{self._step}"
            )
        lr = warmup_lr(step, lr=self._section.lr, warmup_steps=self._section.warmup_steps)
        self._optimizer.step(lr)
        self._step = step
        metrics = {
            "loss/total": loss,
            "loss/policy": loss,
            "loss/entropy": sums.entropy / num_trained_tokens,
            **sums.ratios.metrics(),
            "optim/lr": lr,
            "optim/grad_norm": grad_norm,
            "perf/trained_tokens": float(num_trained_tokens),
        }
        if sums.num_lag0:
            metrics["kl/gap_lag0_mean"] = sums.gap_lag0 / sums.num_lag0
        return metrics


def make_trainer(config: RunConfig, run_dir: Path, checkpoint: Path | None = None) -> Trainer:
    """The trainer of a run, as `checkpoint` has it where one is given.

    Its weight files carry the run directory's name.
    """
    trainer = Trainer(
        model_path=config.model.path,
        dtype=config.model.dtype,
        section=config.learner,
        temperature=config.rollout.temperature,
        publisher=_publisher(config, run_dir),
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    return trainer


def _publisher(config: RunConfig, run_dir: Path) -> "Overlapping | Sender":
    """What hands the weights of a run over."""
    section, log = config.weights, version_log(run_dir)
    if section.transport == "nccl":
        from learner.nccl import Sender  # it brings vLLM

        return Sender(
            log=log,
            num_workers=config.engine.vllm.tensor_parallel,
            buffer_bytes=section.buffer_mb << 20,
            num_buffers=section.num_buffers,
        )
    return Overlapping(
        Publisher(
            directory=section.dir, fallback=run_dir / "weights", run_id=run_id(run_dir), log=log
        )
    )


@torch.no_grad()
def _watch(sums: _Sums, tokens: TokenLogprobs, part: MicroBatch, version: int) -> None:
    """Add entropy, and the gap to the engine on tokens of the same weights.

    Tokens sampled on a cache of older weights are left out of the gap: they differ by design.
    """
    sums.entropy += tokens.entropy_N.double().sum().item()
    is_lag0_N = ((part.versions_BT == version) & ~part.mixed_kv_BT)[part.mask_BT]
    gap_N = (tokens.logprobs_N - part.old_logprobs_BT[part.mask_BT]).abs().double()
    sums.gap_lag0 += gap_N[is_lag0_N].sum().item()
    sums.num_lag0 += is_lag0_N.sum().item()
