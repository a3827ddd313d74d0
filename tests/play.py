"""A slow, plain player: transformers' own forward passes and environments in this process.

It shares nothing with the engine or the actor but `rollout.tokens`, so it can vouch for a policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from transformers import PreTrainedModel

from envpool.env import ToolEnv
from envpool.source import PoolSource
from envpool.task import Split
from rollout import toolcall
from rollout.tokens import ChatTokens, Conversation
from rollout.types import Span


@dataclass(slots=True, kw_only=True)
class Played:
    """One episode of one environment, and how it went."""

    env_id: str
    env: ToolEnv
    conversation: Conversation
    reward: float = 0.0
    is_over: bool = False
    reply_lengths: list[int] = field(default_factory=list)


@torch.inference_mode()
def play(
    model: PreTrainedModel,
    tokens: ChatTokens,
    source: PoolSource,
    env_ids: Sequence[str],
    *,
    count: int,
    temperature: float,
    seed: int = 0,
    level: int = 0,
    split: Split = Split.EVAL,
    max_turns: int = 12,
    max_reply_tokens: int = 14,
) -> list[Played]:
    """Play `count` fresh configurations, the environments in turn; temperature 0 is greedy."""
    rng, chance = Random(seed), torch.Generator().manual_seed(seed)
    episodes = []
    for index in range(count):
        env_id = env_ids[index % len(env_ids)]
        env = source.env(env_id)()
        statement, _ = env.reset(options=source.draw(env_id, rng, split, level))
        conversation = tokens.conversation(statement, type(env).tools())
        episodes.append(Played(env_id=env_id, env=env, conversation=conversation))
    for _ in range(max_turns):
        running = [episode for episode in episodes if not episode.is_over]
        if not running:
            break
        prompts = [episode.conversation.ids for episode in running]
        replies = generate(
            model,
            prompts,
            tokens.stop_token_ids,
            max_tokens=max_reply_tokens,
            temperature=temperature,
            chance=chance,
        )
        for episode, reply in zip(running, replies, strict=True):
            _step(episode, reply)
    return episodes


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_token_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    chance: torch.Generator,
) -> list[list[int]]:
    """Continue B prompts, padded on the left, until each has a stop token or `max_tokens`."""
    longest = max(map(len, prompts))
    mask_BT = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    ids_BT = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    replies: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    cache = None
    for _ in range(max_tokens):
        made = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits_BV = made.past_key_values, made.logits[:, -1].float()
        if temperature:
            probabilities_BV = (logits_BV / temperature).softmax(-1)
            ids_BT = torch.multinomial(probabilities_BV, 1, generator=chance)
        else:
            ids_BT = logits_BV.argmax(-1, keepdim=True)
        for row, token_id in enumerate(ids_BT[:, 0].tolist()):
            if not ended[row]:
                replies[row].append(token_id)
                ended[row] = token_id in stop_token_ids
        if all(ended):
            break
        mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], 1)
        position_BT = position_BT[:, -1:] + 1
    return replies


def _step(episode: Played, reply: list[int]) -> None:
    spans = [Span(version=0, start=0, end=len(reply))]
    text = episode.conversation.reply(reply, np.zeros(len(reply)), spans)
    episode.reply_lengths.append(len(reply))
    observation, reward, is_over, is_cut, _ = episode.env.step(toolcall.parse(text))
    episode.reward += reward
    episode.is_over = is_over or is_cut
    if not episode.is_over:
        episode.conversation.observe(observation)
