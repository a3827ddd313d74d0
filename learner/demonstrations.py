"""Demonstrations become rows to train on, with the masks that rollouts have, and batches of them.

A demonstration has messages, which `rollout.tokens` encodes as it does a rollout's, and may have the
tokens that were sampled. Those are used as they are where this policy's tokenizer reads the same text
in them: what is imitated is then what RL would have trained on, token for token.
"""

import logging
import random
from collections.abc import Sequence

import numpy as np

from configs.load import ConfigError
from configs.sft import MessagesRow, SampledRow, SftRecipe
from rollout.tokens import ChatTokens
from rollout.types import Row, Span

_log = logging.getLogger(__name__)

# Rows are sorted by length within so many batches. More would make batches of one environment and one
# outcome; fewer, batches of unlike work.
SORTED_BATCHES = 2


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


def as_sampled(row: MessagesRow, encoded: Sequence[Row], tokens: ChatTokens) -> list[Row] | None:
    """The rows as they were sampled; None unless they say what `encoded` does in this tokenizer."""
    found = [_sampled(one) for one in row.sampled]
    if len(found) != len(encoded):
        return None
    for sampled, again in zip(found, encoded, strict=True):
        if sampled is None or not _is_same_text(sampled, again, tokens):
            return None
    return [one for one in found if one is not None]


def encode_all(
    demonstrations: Sequence[MessagesRow], tokens: ChatTokens, *, max_tokens: int
) -> list[list[Row]]:
    """The rows of each demonstration, none where one is longer than `max_tokens`; says what was used."""
    made: list[list[Row]] = []
    num_sampled, num_again, num_long = 0, 0, 0
    for demonstration in demonstrations:
        rows = encode(demonstration, tokens)
        if demonstration.sampled:
            sampled = as_sampled(demonstration, rows, tokens)
            num_sampled += sampled is not None
            num_again += sampled is None
            rows = sampled or rows
        if any(len(row.token_ids) > max_tokens for row in rows):
            num_long, rows = num_long + 1, []
        made.append(rows)
    if num_sampled:
        _log.info("tokens: %d demonstrations are trained on as they were sampled", num_sampled)
    if num_again:
        _log.info(
            "tokens: %d demonstrations are encoded again from their text, as this tokenizer reads other "
            "text in the tokens that were sampled",
            num_again,
        )
    if num_long:
        _log.warning(
            "left out: %d demonstrations longer than the %d tokens that the model takes",
            num_long,
            max_tokens,
        )
    return made


def held_out(demonstrations: Sequence[MessagesRow], recipe: SftRecipe) -> list[bool]:
    """Which demonstrations are not trained on: all those of a share of the tasks."""
    tasks = [one.task or f"#{index}" for index, one in enumerate(demonstrations)]
    known = list(dict.fromkeys(tasks))
    number = round(recipe.held_out * len(known))
    if recipe.held_out and not 0 < number < len(known):
        raise ConfigError(
            f"held_out={recipe.held_out:g} of {len(known)} tasks is {number}: choose a share that "
            "leaves some on either side"
        )
    chosen = set(random.Random(f"{recipe.seed}/held out").sample(known, number))
    return [task in chosen for task in tasks]


def batches(rows: Sequence[Row], recipe: SftRecipe) -> list[list[Row]]:
    """The rows of each optimizer step, of like length.

    The first pass keeps the order given, which may be a curriculum.
    """
    size, made = recipe.batch_rows, list[list[Row]]()
    for epoch in range(recipe.epochs):
        order = list(rows)
        if epoch:
            random.Random(f"{recipe.seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), size * SORTED_BATCHES):
            window = order[start : start + size * SORTED_BATCHES]
            window.sort(key=lambda row: len(row.mask))
            made += [window[begin : begin + size] for begin in range(0, len(window), size)]
    return made[: recipe.max_steps or len(made)]


def _sampled(row: SampledRow) -> Row | None:
    """The record as a row; None for one that nothing can be trained on."""
    ids = np.frombuffer(row.token_ids, dtype=np.int32)
    mask = np.frombuffer(row.mask, dtype=np.uint8)
    if not len(ids) or len(ids) != len(mask) or mask[0] or not set(mask.tolist()) <= {0, 1}:
        return None
    edges = np.flatnonzero(np.diff(mask, prepend=0, append=0))
    spans = [Span(0, int(start), int(end)) for start, end in edges.reshape(-1, 2)]
    return Row.pack(ids, np.zeros(len(ids)), mask, spans)


def _is_same_text(one: Row, other: Row, tokens: ChatTokens) -> bool:
    """Whether both show the same, and the same of it was replied."""
    if one.token_ids.min() < 0 or one.token_ids.max() >= len(tokens.tokenizer):
        return False
    return all(
        tokens.decode(one.token_ids[one.mask == bit].tolist())
        == tokens.decode(other.token_ids[other.mask == bit].tolist())
        for bit in (0, 1)
    )
