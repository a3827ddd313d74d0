"""What the factory makes a pool from, and what it demands of each environment and task.

Loaded like a run's configuration, from TOML files and `a.b=value` overrides: `launch.py synth`.
"""

from typing import Literal

import msgspec

from configs.ranges import Count, Fraction, NonNegative, Positive, Whole

DEFAULT_RECIPE = "synth.toml"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the recipe; unknown keys are refused."""


class ProblemsRecipe(_Section, frozen=True, kw_only=True):
    """Which coding problems."""

    paths: list[str] = []
    """JSONL or parquet files, `.py` files or directories of them; empty: the problems that come along."""
    format: Literal["native", "kodcode", "apps", "taco"] = "native"
    """Shape of the rows of JSONL and parquet files."""
    fields: dict[str, str] = {}
    """Field of `native` rows by the name it has in yours, e.g. `{question = "statement"}`."""
    only: list[str] = []
    """Ids or concepts to take; empty: all."""


class ExtractRecipe(_Section, frozen=True, kw_only=True):
    """The synthesizer that compiles a solution by its syntax tree and traces, without a model."""

    enabled: bool = True
    """Whether problems go through it."""
    solutions: Count = 1
    """How many solutions of a problem it tries, the original first, until one passes."""
    hint: str = "The data is not shown: work on it with the tools, step by step, and give the answer with `done`."
    """What a player is told after the problem's own words."""


class LlmRecipe(_Section, frozen=True, kw_only=True):
    """The synthesizer that asks a language model at an OpenAI-compatible endpoint."""

    enabled: bool = False
    """Whether problems go through it."""
    base_url: str = ""
    """The endpoint; empty: the environment's OPENAI_BASE_URL."""
    model: str = ""
    """Name of the model; needed."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is never written down."""
    samples: Count = 1
    """Environments asked for per problem, each with a seed of its own."""
    solvers: Whole = 2
    """Independent solvers asked for per problem."""
    temperature: NonNegative = 0.8
    """Sampling temperature: more gives more diverse environments and more refused ones."""
    max_tokens: Count = 8192
    """Longest reply."""
    repairs: Whole = 2
    """How often a refused environment goes back with the verifier's message."""
    concurrency: Count = 8
    """Requests under way at once."""
    retries: Whole = 5
    """Further tries of a request that the endpoint failed, with growing pauses."""
    timeout_s: Positive = 300.0
    """Longest wait for one reply."""
    max_cost: NonNegative = 0.0
    """Stop asking once this much was spent, in the currency of the prices; 0: no bound."""
    max_total_tokens: Whole = 0
    """Stop asking once this many tokens were used, prompts included; 0: no bound."""
    price_in: NonNegative = 0.0
    """Price of a million prompt tokens."""
    price_out: NonNegative = 0.0
    """Price of a million reply tokens."""
    cache: str = ""
    """Directory of replies, which are not asked for again; empty: below the output directory."""
    batch: Literal["off", "write", "read"] = "off"
    """`write` an OpenAI batch request file in place of asking; `read` the reply file that came back."""
    replies: str = ""
    """The reply file that batch=read reads."""


class VerifyRecipe(_Section, frozen=True, kw_only=True):
    """What every environment and configuration has to pass, in the sandbox."""

    configs: Count = 8
    """Tasks wanted of each environment."""
    drawn: Count = 24
    """Configurations drawn for them at most: some do not pass."""
    level: Whole = 0
    """Difficulty handed to generators."""
    levels: Count = 1
    """How many difficulties, from `level` on."""
    seed: Whole = 0
    """Seeds configurations and the agents that must not win."""
    step_timeout_s: Positive = 5.0
    """A call that takes longer refuses the environment."""
    solve_timeout_s: Positive = 10.0
    """A solution that takes longer on one configuration is refused."""
    memory_mb: Count = 512
    """Address space of the processes in which drafts and solutions run."""
    random_episodes: Count = 8
    """Episodes of the agent that calls tools at random, per task."""
    max_random_rate: Fraction = 0.2
    """Share of those that may win, over all tasks of an environment."""
    max_guess_rate: Fraction = 0.25
    """Share of configurations with one prompt that one answer may be right for."""
    alternatives: Count = 48
    """Configurations sampled against each task for its certificate."""
    min_certificate: Whole = 3
    """Calls that any agent must need at least to be sure of the answer."""
    certificate_s: Positive = 5.0
    """Time for one certificate, after which its bound may be looser."""


class FilterRecipe(_Section, frozen=True, kw_only=True):
    """Which verified tasks are kept."""

    min_calls: Count = 10
    """Calls of the shortest winning trace, at least."""
    max_calls: Count = 256
    """And at most; `hard` sets take 512."""
    min_tools: Count = 4
    """Tools of an environment, `done` among them."""
    model: str = ""
    """Measures the pass rate: a model directory, or a model's name at `base_url`; empty: not measured."""
    base_url: str = ""
    """OpenAI-compatible endpoint of `model`; empty: `model` is a directory for the embedded engine."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the endpoint's key."""
    samples: Count = 8
    """Episodes per task."""
    concurrency: Count = 32
    """Episodes at once."""
    max_reply_tokens: Count = 1024
    """Longest reply of the model that is measured."""
    max_context_tokens: Count = 32768
    """Longest conversation."""
    episode_timeout_s: Positive = 900.0
    """An episode that takes longer is not measured."""
    above: Fraction = 0.0
    """Tasks are kept whose pass rate is above this."""
    up_to: Fraction = 0.9
    """And not above this. Tasks at 0 are quarantined, not dropped."""
    stronger: str = ""
    """A stronger model at `base_url`, asked about tasks at 0: those that it wins are kept."""
    duplicates: Fraction = 0.9
    """Environments are one if this share of shared inputs gives equal behaviour, or their texts do."""


class SplitRecipe(_Section, frozen=True, kw_only=True):
    """How environments are divided, whole concepts at a time."""

    validation: Fraction = 0.1
    """Share of environments for validation."""
    test: Fraction = 0.1
    """Share of environments for the final test."""
    seed: Whole = 0
    """Seeds which concepts go where."""


class VariationRecipe(_Section, frozen=True, kw_only=True):
    """Variants of tasks that stay verifiable: each is part of the configuration."""

    share: Fraction = 0.0
    """Share of tasks that get a variant beside the plain one."""
    kinds: list[
        Literal["rename", "distract", "fail", "noise", "paginate", "budget", "permute"]
    ] = []
    """Which variations; empty: all."""
    seed: Whole = 0
    """Seeds which task gets what."""


class SynthRecipe(_Section, frozen=True, kw_only=True):
    """Problems in, pools out."""

    out: str = "runs/synth"
    """Directory of the result. Where it holds an unfinished one, that goes on."""
    workers: Whole = 0
    """Environments verified at once; 0: as many as there are cores."""
    problems: ProblemsRecipe = ProblemsRecipe()
    extract: ExtractRecipe = ExtractRecipe()
    llm: LlmRecipe = LlmRecipe()
    recorded: bool = True
    """Whether the environments that ship as a language model's go in beside the problems that ship."""
    verify: VerifyRecipe = VerifyRecipe()
    filters: FilterRecipe = FilterRecipe()
    variation: VariationRecipe = VariationRecipe()
    split: SplitRecipe = SplitRecipe()
