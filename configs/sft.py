"""What a warm start is made from: traces, the policy's shape, and how it is trained.

Loaded like a run's configuration, from TOML files and `a.b=value` overrides.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from configs.ranges import Count, Fraction, NonNegative, Positive, Whole


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the recipe; unknown keys are refused."""


class TraceRecipe(_Section, frozen=True, kw_only=True):
    """Demonstrations by a sloppy oracle, on training configurations only."""

    source: str = "envpool.envs:basics"
    """A directory of environments, or `module:attribute`. Its code runs in this process."""
    more: dict[str, str] = {}
    """Further sources by a name; their environments are `name/env` in `envs`."""
    envs: list[str] = []
    """Environment ids in turn, some more than once to be shown more often; empty: all there are."""
    count: Count = 25600
    """Episodes in all; more make a surer policy and cost time in proportion."""
    level: Whole = 0
    """Difficulty handed to the environment's generator."""
    max_turns: Count = 12
    """Calls after which an episode is cut off."""
    seed: Whole = 0
    """Seeds configurations and mistakes."""
    clean: Fraction = 0.6
    """Share of episodes, the first ones, without mistakes: what to do is learned sooner from them."""
    spoiled: Fraction = 0.2
    """Share of calls spoiled in the other episodes: the success that is left for RL to gain."""
    hasty: Fraction = 0.0
    """Share of the other episodes whose demonstrator gives up after `patience` calls."""
    patience: Count = 4
    """Calls after which a hasty demonstrator answers with the last number it saw."""
    wrong_number: NonNegative = 0.5
    """Weight of a wrong number among the mistakes."""
    early_done: NonNegative = 0.3
    """Weight of an answer out of nowhere, which ends the episode."""
    broken_json: NonNegative = 0.2
    """Weight of a call that does not parse."""

    @property
    def num_clean(self) -> int:
        """Episodes, the first ones, that are played without mistakes."""
        return round(self.count * self.clean)


class PolicyRecipe(_Section, frozen=True, kw_only=True):
    """Shape of a new Qwen3 policy. vLLM's CPU attention takes head_dim 32, 64, 80, 96, 112, 128."""

    hidden: Count = 96
    """Width of a layer's input and output."""
    layers: Count = 3
    """Layers."""
    heads: Count = 4
    """Attention heads of a layer."""
    kv_heads: Count = 2
    """Keys and values of a layer, each shared by heads / kv_heads heads."""
    head_dim: Count = 32
    """Width of a head."""
    ffn: Count = 288
    """Width inside the feed-forward block."""
    vocabulary: Annotated[int, Meta(ge=512)] = 640
    """Most tokens; more shorten the text, up to what the traces' words need."""
    max_positions: Count = 1024
    """Longest sequence it may be asked for."""


class SftRecipe(_Section, frozen=True, kw_only=True):
    """The whole of a warm start."""

    out: str
    """Directory to write; must be empty or new."""
    overwrite: bool = False
    """Write into `out` although it is not empty."""
    base: str = ""
    """Model directory to start from; empty: a new policy of the shape in `policy`."""
    seed: Whole = 0
    """Seeds the initial weights."""
    lr: Positive = 4e-3
    """Peak learning rate, reached after `warmup_steps` and lowered to 0 along a cosine."""
    warmup_steps: Whole = 20
    """Steps over which the rate rises linearly from 0."""
    batch_rows: Count = 32
    """Traces per optimizer step."""
    max_steps: Whole = 0
    """Stop after this many steps, the schedule with them; 0: one pass over the traces."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay of matrices."""
    grad_clip: Positive = 1.0
    """Bound on the gradient's norm."""
    traces: TraceRecipe = TraceRecipe()
    policy: PolicyRecipe = PolicyRecipe()


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of OpenAI's chat format."""

    role: str
    """`user` (the task, first), `assistant` (a reply, as text), `tool` (an observation)."""
    content: str


class MessagesRow(msgspec.Struct, frozen=True, kw_only=True):
    """One demonstration, a line of JSONL: the task, then replies and observations in turn."""

    env: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    """OpenAI function schemas."""
    reward: float
    """What the environment gave for it; imitated either way."""
