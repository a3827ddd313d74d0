"""What a warm start is made from: traces, the policy's shape, and how it is trained.

Loaded like a run's configuration, from TOML files and `a.b=value` overrides.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from configs.lora import LoraSection
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


class RolloutsRecipe(_Section, frozen=True, kw_only=True):
    """Rollouts that ended well, imitated instead of oracles: logged ones, or a teacher's."""

    paths: list[str] = []
    """Run directories, or .jsonl files of a log's rollouts or of `messages`; all they have is read."""
    teacher: str = ""
    """Model directory that plays training tasks of `recipe` first, as a run's actor would."""
    recipe: list[str] = []
    """Recipes and `a.b=value` of a run, for its pools, budgets and engine; empty: local.toml."""
    tasks: Count = 200
    """Tasks that the teacher plays."""
    samples: Count = 8
    """Times that it plays each."""
    min_reward: float = 1.0
    """Rollouts with less are left out; one without a verdict always is."""
    per_task: Whole = 4
    """Most rollouts kept of a task, so that easy tasks do not crowd out hard ones; 0: all."""
    choose: Literal["shortest", "first"] = "shortest"
    """Which of a task's are kept: those of the fewest turns, then tokens; or those read first."""
    evaluation: bool = False
    """Also imitate tasks of the evaluation side, on which the policy can then not be measured."""

    @property
    def is_used(self) -> bool:
        """Whether rollouts are imitated, and no oracles."""
        return bool(self.paths or self.teacher)


class SftCheckpoints(_Section, frozen=True, kw_only=True):
    """What a kill can cost."""

    every: Whole = 0
    """Steps between checkpoints in `out/sft`, from which `sft --resume out` goes on; 0: none."""
    keep: Count = 2
    """Checkpoints kept; older ones are removed."""


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
    micro_batch_tokens: Count = 4096
    """Tokens computed at once, none of them padding; more memory, fewer passes."""
    epochs: Count = 1
    """Passes over the traces: the first in their order, each later one shuffled."""
    max_steps: Whole = 0
    """Stop after this many steps, the schedule with them; 0: all passes over the traces."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of tasks that are not trained on and whose loss is told instead."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay of matrices."""
    grad_clip: Positive = 1.0
    """Bound on the gradient's norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights; the optimizer keeps float32 ones beside bfloat16."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it is trained."""
    threads: Count = 1
    """Torch threads; with another number the same recipe gives other bytes."""
    activation_checkpointing: bool = False
    """Keep only what enters each layer, and compute the rest again: less memory, a third slower."""
    lora: LoraSection = LoraSection()
    """What is trained: all weights, or adapters, which are in the weights of the policy that is written."""
    checkpoint: SftCheckpoints = SftCheckpoints()
    rollouts: RolloutsRecipe = RolloutsRecipe()
    traces: TraceRecipe = TraceRecipe()
    policy: PolicyRecipe = PolicyRecipe()

    def __post_init__(self) -> None:
        if self.dtype != "float32" and not self.base:
            raise ValueError(
                f'dtype="{self.dtype}" is for models that are large: a new policy is trained in float32; '
                "name a model in base, or leave dtype out"
            )
        if self.lora.rank and not self.base:
            raise ValueError(
                f"lora.rank={self.lora.rank} adapts a model that knows something: name one in base, or set "
                "lora.rank=0 to train a new policy"
            )


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One message of OpenAI's chat format."""

    role: str
    """`user` (the task, first), `assistant` (a reply, as text), `tool` (an observation)."""
    content: str


class SampledRow(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a demonstration as they were sampled; `T` of them."""

    token_ids: bytes
    """[T] int32."""
    mask: bytes
    """[T] uint8, 1 exactly where the demonstrator sampled the token."""


class MessagesRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One demonstration, a line of JSONL: the task, then replies and observations in turn."""

    env: str
    messages: list[Message]
    tools: list[dict[str, Any]]
    """OpenAI function schemas."""
    reward: float
    """What the environment gave for it; imitated either way."""
    task: str = ""
    """Names what was asked: rollouts of one task are held out together. Empty: a task of its own."""
    sampled: list[SampledRow] = []
    """Its tokens, where they are known: right for a policy with the demonstrator's tokenizer."""
