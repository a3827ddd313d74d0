"""The warm start: imitate traces, on the tokens that a policy would have sampled.

Rows come in as chat messages; `rollout.tokens` turns them into tokens and masks as it does for
rollouts. Same recipe, rows and library versions give the same bytes.
"""

import hashlib
import json
import logging
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3ForCausalLM

from configs.load import ConfigError, find
from configs.sft import MessagesRow, SftRecipe
from learner.attention import use_packing
from learner.head import check_head, token_logprobs
from learner.layout import pack_rows
from learner.tiny_policy import make_model, make_tokenizer, untie
from rollout.model import load_model
from rollout.tokens import ChatTokens
from rollout.types import Row, Span

_log = logging.getLogger(__name__)

# Rows are sorted by length within so many batches. More would save padding, but make batches of
# one environment and one outcome.
_SORTED_BATCHES = 2
# Most traces whose text the tokenizer is trained on; more change nothing.
_TOKENIZER_ROWS = 2000
_PROGRESS_STEPS = 50


def train(rows: Sequence[MessagesRow], recipe: SftRecipe) -> None:
    """Train on `rows` and write the policy to `recipe.out`.

    Raises ConfigError for an output directory in use, or rows without a reply.
    """
    out = Path(recipe.out)
    check_output(out, overwrite=recipe.overwrite)
    with _one_thread():
        torch.manual_seed(recipe.seed)
        model, tokens = _start(rows, recipe)
        encoded = [encode(demonstration, tokens) for demonstration in rows]
        trained = [row for some in encoded for row in some]
        if not trained:
            raise ConfigError(f"traces: none of the {len(rows)} rows has a reply to learn")
        has_slips = recipe.traces.spoiled or recipe.traces.hasty
        num_clean = sum(map(len, encoded[: recipe.traces.num_clean])) if has_slips else 0
        fit(model, trained, recipe, num_clean=num_clean)
        if isinstance(model, Qwen3ForCausalLM) and not recipe.base:
            untie(model)
    save(model, tokens, out, metadata={"recipe": recipe_hash(recipe), "traces": rows_hash(rows)})


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise ConfigError when `out` holds something and may not be overwritten."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={str(out)!r} is a file: name a directory")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"out={str(out)!r} is not empty: choose another, or set overwrite=true")


def encode(row: MessagesRow, tokens: ChatTokens) -> list[Row]:
    """A demonstration as rows whose mask covers the replies; raises ConfigError for odd messages."""
    roles = [message.role for message in row.messages]
    wanted = (["user"] + ["assistant", "tool"] * len(roles))[: len(roles)]
    if not roles or roles != wanted:
        raise ConfigError(f"messages: roles are {roles}; use user, then assistant and tool in turn")
    task, *rest = row.messages
    conversation = tokens.conversation(task.content, row.tools)
    for message in rest:
        if message.role == "tool":
            conversation.observe(message.content)
        else:
            ids = tokens.reply_ids(message.content)
            conversation.reply(ids, np.zeros(len(ids)), [Span(version=0, start=0, end=len(ids))])
    return conversation.rows()


def fit(
    model: PreTrainedModel, rows: Sequence[Row], recipe: SftRecipe, *, num_clean: int = 0
) -> list[float]:
    """Minimise cross-entropy on masked tokens; returns the loss of each step, in nats per token.

    The first `num_clean` rows are of demonstrations without mistakes: where they end is said.
    """
    batches = _batches(rows, recipe)
    # Rows are sorted within windows, so that the first of another kind may be anywhere in its own.
    turn = num_clean // (recipe.batch_rows * _SORTED_BATCHES) * _SORTED_BATCHES + 1
    _log.info("sft: %d steps on %d rows", len(batches), len(rows))
    optimizer = _optimizer(model, recipe)
    losses, started_s = [], time.perf_counter()
    # Without dropout, as RL goes on from here.
    model.eval()
    check_head(model)
    use_packing(model)
    for step, batch in enumerate(batches, start=1):
        if step == turn and num_clean:
            _log.info(
                "sft step %d: the demonstrations without mistakes end, those of the sloppy hand "
                "begin: the loss jumps here, since nobody can foresee a slip",
                step,
            )
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(step, recipe.warmup_steps, len(batches))
        loss = batch_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
        optimizer.step()
        losses.append(loss.item())
        if step % _PROGRESS_STEPS == 0 or step == len(batches):
            recent = sum(losses[-_PROGRESS_STEPS:]) / len(losses[-_PROGRESS_STEPS:])
            elapsed_s = time.perf_counter() - started_s
            _log.info("sft step %d/%d | loss %.4f | %.0f s", step, len(batches), recent, elapsed_s)
    return losses


def batch_loss(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """Mean cross-entropy (nats) over the masked tokens of the rows, each predicted from those before.

    `model` must use packing (`learner.attention.use_packing`).
    """
    packed = pack_rows([[row] for row in rows])
    return -token_logprobs(model, packed, temperature=1.0).logprobs_N.mean()


def save(
    model: PreTrainedModel, tokens: ChatTokens, out: Path, *, metadata: dict[str, str]
) -> None:
    """Write a Hugging Face directory; files appear when whole.

    The safetensors carry `metadata`, and the hashes of the files they belong with.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        made = Path(name)
        model.save_pretrained(made)
        tokens.tokenizer.save_pretrained(made)
        for file in made.glob("*.safetensors"):
            _set_metadata(file, {"format": "pt", **metadata, **_file_hashes(made)})
        for file in made.iterdir():
            shutil.copyfile(file, out / f".{file.name}")
            (out / f".{file.name}").replace(out / file.name)


def recipe_hash(recipe: SftRecipe) -> str:
    """SHA-256 (hex) of what decides the weights: all of the recipe but where it is written."""
    plain = msgspec.structs.replace(recipe, out="", overwrite=False)
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def rows_hash(rows: Sequence[MessagesRow]) -> str:
    """SHA-256 (hex) of the rows as JSONL."""
    return hashlib.sha256(msgspec.json.Encoder().encode_lines(rows)).hexdigest()


def _file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 (hex) of the files without which weights mean something else."""
    names = ("config.json", "tokenizer.json", "chat_template.jinja")
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}


def _set_metadata(file: Path, metadata: dict[str, str]) -> None:
    """Rewrite the header of a safetensors file: 8 bytes of length, JSON, then the tensors.

    The library writes metadata in random order, and the same weights should be the same file.
    """
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = metadata
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned to 8 bytes
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def _start(rows: Sequence[MessagesRow], recipe: SftRecipe) -> tuple[PreTrainedModel, ChatTokens]:
    if recipe.base:
        base = find(recipe.base)
        return load_model(base, "float32"), ChatTokens.load(base)
    some = random.Random(recipe.seed).sample(rows, min(len(rows), _TOKENIZER_ROWS))
    tokenizer = make_tokenizer(_texts(some), recipe.policy.vocabulary)
    return make_model(recipe.policy, tokenizer), ChatTokens(tokenizer)


def _texts(rows: Sequence[MessagesRow]) -> Iterator[str]:
    for row in rows:
        for tool in row.tools:
            function = tool["function"]
            yield f"{function['name']}({', '.join(function['parameters']['properties'])})\n"
        yield from (message.content for message in row.messages)


def _batches(rows: Sequence[Row], recipe: SftRecipe) -> list[list[Row]]:
    """One pass in the order given, which may be a curriculum; each batch of rows of like length."""
    size, batches = recipe.batch_rows, []
    for start in range(0, len(rows), size * _SORTED_BATCHES):
        window = sorted(rows[start : start + size * _SORTED_BATCHES], key=lambda row: len(row.mask))
        batches += [window[begin : begin + size] for begin in range(0, len(window), size)]
    return batches[: recipe.max_steps or len(batches)]


def _optimizer(model: PreTrainedModel, recipe: SftRecipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def _schedule(step: int, warmup_steps: int, num_steps: int) -> float:
    """Share of the peak rate at `step` (from 1): linear rise, then half a cosine down to 0."""
    if step <= warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are then added in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
