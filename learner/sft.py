"""The warm start: imitate demonstrations, on the tokens that a policy would have sampled.

    demonstrations -> rows (learner/demonstrations.py) -> micro-batches -> AdamW -> a policy's files

Packing, log-probs, optimizer and checkpoints are RL's. Same recipe, rows and library versions give the
same bytes, also where it was stopped and went on (on a CPU, in float32).
"""

import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen3ForCausalLM

from configs.load import ConfigError, find
from configs.schema import LearnerSection
from configs.sft import MessagesRow, SftRecipe
from learner.attention import use_packing
from learner.batch import fill
from learner.checkpoint import read_learner_part
from learner.demonstrations import SORTED_BATCHES, batches, encode_all, held_out
from learner.head import check_head, token_logprobs
from learner.layers import recompute_layers
from learner.layout import pack_rows
from learner.lora import adapt, adapter_of, merge
from learner.optimizer import Optimizer
from learner.policy_files import recipe_hash, rows_hash, save
from learner.ranks import Ranks
from learner.tiny_policy import make_model, make_tokenizer, untie
from learner.warm_state import WarmState, is_stopped, read
from rollout.checkpoints import step_of
from rollout.model import load_model
from rollout.tokens import ChatTokens
from rollout.types import Row

_log = logging.getLogger(__name__)

# Most traces whose text the tokenizer is trained on; more change nothing.
_TOKENIZER_ROWS = 2000
_PROGRESS_STEPS = 50


@dataclass(slots=True, kw_only=True, frozen=True)
class Lessons:
    """What a warm start trains on, encoded."""

    rows: list[Row]
    num_clean: int = 0
    """The first of them, of demonstrations without mistakes: where they end is said."""
    held_out: tuple[Row, ...] = ()
    """Only their loss is told."""


def train(rows: Sequence[MessagesRow], recipe: SftRecipe) -> None:
    """Train on `rows` and write the policy to `recipe.out`.

    Raises ConfigError for an output directory in use, or rows without a reply.
    """
    check_output(Path(recipe.out), overwrite=recipe.overwrite)
    with _threads(recipe.threads):
        torch.manual_seed(recipe.seed)
        model, tokens = _start(rows, recipe)
        lessons = _lessons(rows, recipe, model, tokens)
        state = WarmState.begin(recipe, rows, tokens) if recipe.checkpoint.every else None
        fit(model, lessons, recipe, state=state)
        _finish(model, tokens, rows, recipe, state)


def resume(out: Path) -> SftRecipe:
    """Go on with the warm start in `out`, from its newest checkpoint; returns its recipe.

    The policy is the one that it would have become. Raises ConfigError where there is none to go on with.
    """
    recipe, rows = read(out)
    state = WarmState.of(recipe)
    with _threads(recipe.threads):
        torch.manual_seed(recipe.seed)
        newest = state.latest
        # Adapters go on beside the weights that they began with, which are those of `base`.
        if newest is None or recipe.lora.rank:
            model, tokens = _start(rows, recipe)
        else:
            model = load_model(newest / "hf", recipe.dtype)
            tokens = ChatTokens.load(newest / "hf")
        _log.info("sft: goes on after step %d", step_of(newest) if newest else 0)
        lessons = _lessons(rows, recipe, model, tokens)
        fit(model, lessons, recipe, state=state, checkpoint=newest)
        _finish(model, tokens, rows, recipe, state)
    return recipe


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError when `out` holds something and may not be overwritten."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={str(out)!r} is a file: name a directory")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        stopped = f" (sft --resume {out} goes on with what was stopped)" if is_stopped(out) else ""
        raise ConfigError(
            f"out={str(out)!r} is not empty: choose another, or set overwrite=true{stopped}"
        )


def fit(
    model: PreTrainedModel,
    lessons: Lessons,
    recipe: SftRecipe,
    *,
    state: WarmState | None = None,
    checkpoint: Path | None = None,
) -> list[float]:
    """Minimise cross-entropy on masked tokens; returns the loss of each step, in nats per token.

    `state` is where checkpoints go. With `checkpoint` the model is that of its step, or with adapters
    the base of it, and training goes on there. Raises ConfigError for adapters that do not fit.
    """
    planned = batches(lessons.rows, recipe)
    # Rows are sorted within windows, so that the first of another kind may be anywhere in its own.
    turn = lessons.num_clean // (recipe.batch_rows * SORTED_BATCHES) * SORTED_BATCHES + 1
    _log.info("sft: %d steps on %d rows", len(planned), len(lessons.rows))
    if recipe.lora.rank:
        try:
            adapt(model, recipe.lora, base=find(recipe.base), seed=recipe.seed)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    nn.Module.to(model, torch.device(recipe.device))
    # Without dropout, as RL goes on from here.
    model.eval()
    check_head(model)
    use_packing(model)
    if recipe.activation_checkpointing:
        recompute_layers(model)
    optimizer = Optimizer(model, _section(recipe))
    done = 0
    if checkpoint is not None:
        done = read_learner_part(
            checkpoint,
            optimizer=optimizer,
            adapter=adapter_of(model),
            dtype=model.dtype,
            ranks=Ranks(),
        ).step
    progress = _Progress(num_steps=len(planned))
    if lessons.held_out and not done:
        before = mean_loss(model, lessons.held_out, recipe)
        _log.info("sft: loss of %d rows held out: %.4f before", len(lessons.held_out), before)
    for step, batch in enumerate(planned[done:], start=done + 1):
        if step == turn and lessons.num_clean:
            _log.info(
                "sft step %d: the demonstrations without mistakes end, those of the sloppy hand "
                "begin: the loss jumps here, since nobody can foresee a slip",
                step,
            )
        loss, num_tokens = _backward(model, batch, recipe, optimizer)
        norm = optimizer.clip()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ConfigError(
                f"lr={recipe.lr:g} is too high: at step {step} the loss is {loss} and the gradient's "
                f"norm {norm}; lower it"
            )
        optimizer.step(recipe.lr * _schedule(step, recipe.warmup_steps, len(planned)))
        progress.add(loss, num_tokens)
        is_last = step == len(planned)
        if step % _PROGRESS_STEPS == 0 or is_last:
            apart = mean_loss(model, lessons.held_out, recipe) if lessons.held_out else None
            progress.tell(step, apart)
        if state is not None and step % recipe.checkpoint.every == 0 and not is_last:
            _log.info("checkpoint: %s", state.save(step, model, optimizer))
    return progress.losses


def loss_parts(model: PreTrainedModel, rows: Sequence[Row], recipe: SftRecipe) -> Iterator[Tensor]:
    """Micro-batch by micro-batch, scalars that add up to the mean cross-entropy (nats) of the rows.

    The mean is over the masked tokens of all of them, each predicted from those before. `model` must use
    packing (`learner.attention.use_packing`).
    """
    num_trained = sum(int(row.mask.sum()) for row in rows)
    sized = [(row, len(row.token_ids)) for row in rows]
    for part in fill(sized, recipe.micro_batch_tokens):
        packed = pack_rows([[row] for row in part]).to(torch.device(recipe.device))
        yield -token_logprobs(model, packed, temperature=1.0).logprobs_N.sum() / num_trained


@torch.no_grad()
def mean_loss(model: PreTrainedModel, rows: Sequence[Row], recipe: SftRecipe) -> float:
    """Cross-entropy of rows, in nats per masked token."""
    return sum(part.item() for part in loss_parts(model, rows, recipe))


def _backward(
    model: PreTrainedModel, batch: Sequence[Row], recipe: SftRecipe, optimizer: Optimizer
) -> tuple[float, int]:
    """Leave the batch's gradient in the optimizer; returns its loss, and how many tokens it computed."""
    optimizer.zero_grad()
    loss = 0.0
    for part in loss_parts(model, batch, recipe):
        part.backward()
        loss += part.item()
    return loss, sum(len(row.token_ids) for row in batch)


class _Progress:
    """Says now and then how it goes."""

    def __init__(self, *, num_steps: int) -> None:
        self.losses: list[float] = []
        self._num_steps = num_steps
        self._num_tokens = 0
        self._started_s = time.perf_counter()

    def add(self, loss: float, num_tokens: int) -> None:
        self.losses.append(loss)
        self._num_tokens += num_tokens

    def tell(self, step: int, held_out: float | None) -> None:
        recent = self.losses[-_PROGRESS_STEPS:]
        elapsed_s = time.perf_counter() - self._started_s
        _log.info(
            "sft step %d/%d | loss %.4f%s | %.1fk tok/s | %.0f s",
            step,
            self._num_steps,
            sum(recent) / len(recent),
            "" if held_out is None else f" | held out {held_out:.4f}",
            self._num_tokens / elapsed_s / 1000,
            elapsed_s,
        )


def _lessons(
    rows: Sequence[MessagesRow], recipe: SftRecipe, model: PreTrainedModel, tokens: ChatTokens
) -> Lessons:
    """Encode the demonstrations and put a share of the tasks aside. Raises ConfigError for none."""
    max_tokens = model.config.get_text_config().max_position_embeddings
    encoded = encode_all(rows, tokens, max_tokens=max_tokens)
    is_apart = held_out(rows, recipe) if recipe.held_out else [False] * len(rows)
    pairs = list(zip(encoded, is_apart, strict=True))
    trained = [row for some, apart in pairs if not apart for row in some]
    if not trained:
        raise ConfigError(f"traces: none of the {len(rows)} rows has a reply to learn")
    has_slips = (recipe.traces.spoiled or recipe.traces.hasty) and not recipe.rollouts.is_used
    clean = pairs[: recipe.traces.num_clean] if has_slips else []
    return Lessons(
        rows=trained,
        num_clean=sum(len(some) for some, apart in clean if not apart),
        held_out=tuple(row for some, apart in pairs if apart for row in some),
    )


def _finish(
    model: PreTrainedModel,
    tokens: ChatTokens,
    rows: Sequence[MessagesRow],
    recipe: SftRecipe,
    state: WarmState | None,
) -> None:
    """Write the policy."""
    nn.Module.to(model, torch.device("cpu"))
    if adapter_of(model) is not None:
        merge(model)
    if isinstance(model, Qwen3ForCausalLM) and not recipe.base:
        untie(model)
    metadata = {"recipe": recipe_hash(recipe), "traces": rows_hash(rows)}
    save(model, tokens, Path(recipe.out), metadata=metadata)
    if state is not None:
        state.finish()


def _start(rows: Sequence[MessagesRow], recipe: SftRecipe) -> tuple[PreTrainedModel, ChatTokens]:
    if recipe.base:
        base = find(recipe.base)
        return load_model(base, recipe.dtype), ChatTokens.load(base)
    some = random.Random(recipe.seed).sample(rows, min(len(rows), _TOKENIZER_ROWS))
    tokenizer = make_tokenizer(_texts(some), recipe.policy.vocabulary)
    return make_model(recipe.policy, tokenizer), ChatTokens(tokenizer)


def _texts(rows: Sequence[MessagesRow]) -> Iterator[str]:
    for row in rows:
        for tool in row.tools:
            function = tool["function"]
            yield f"{function['name']}({', '.join(function['parameters']['properties'])})\n"
        yield from (message.content for message in row.messages)


def _section(recipe: SftRecipe) -> LearnerSection:
    """What RL's optimizer has to know."""
    return LearnerSection(
        lr=recipe.lr,
        beta1=0.9,
        beta2=0.95,
        weight_decay=recipe.weight_decay,
        grad_clip=recipe.grad_clip,
    )


def _schedule(step: int, warmup_steps: int, num_steps: int) -> float:
    """Share of the peak rate at `step` (from 1): linear rise, then half a cosine down to 0."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """With one, sums are added in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
