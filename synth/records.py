"""What the stages of the factory hand on: a draft of an environment, its tasks, and why it was refused.

    Problem -> Draft -> Made (tasks verified) -> filtered -> split -> exported

Every record is JSON on disk, so that a factory that was stopped goes on where it was.
"""

import hashlib
from typing import Any, Literal

import msgspec

from envpool.task import Config
from envpool.tools import Schema


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An environment as a synthesizer gives it: nothing in it was checked.

    `source` is the text of a module that stands alone: it imports the standard library, msgspec and
    `envpool.env`, and defines exactly one `ToolEnv`, whose `Config` has the parameters of the original
    solution as its fields, so that a configuration is also the solution's arguments.
    """

    env: str
    """Id of the environment: its class's name in lower-case words joined by `_`."""
    problem: str
    """Id of the problem."""
    concept: str
    origin: Literal["extract", "llm", "recorded"]
    """Which synthesizer made it; `recorded`: a language model's path, from responses written by hand."""
    source: str
    configs: tuple[Config, ...]
    """Configurations to try, in order; those that pass become tasks."""
    levels: tuple[int, ...] = ()
    """Difficulty of each configuration; empty: 0 for all."""
    solutions: tuple[str, ...]
    """Sources with the entry function: the original solution first, then independent ones."""
    entry: str = "solve"
    checker: str = ""
    """Source with `check(answer, **config)`, where more than one answer is right."""
    notes: tuple[str, ...] = ()
    """What the synthesizer has to say, for the report."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


class Move(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One call of a trace and what it was answered."""

    name: str
    arguments: dict[str, Any]
    observation: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """How many calls any agent needs at least to be sure of the answer (see synth/certificate.py)."""

    calls: int
    """Lower bound, for the alternatives sampled; `done` is not counted."""
    is_exact: bool
    """Whether that many calls also suffice."""
    alternatives: int
    """Configurations with the same prompt and another answer that had to be told apart."""
    is_sampled: bool = False
    """Whether only some of the states and arguments were looked at, so that the bound may be too high."""


class PassRate(msgspec.Struct, frozen=True, kw_only=True):
    """How often a model solved a task."""

    model: str
    won: int
    samples: int

    @property
    def rate(self) -> float:
        return self.won / self.samples


class MadeTask(msgspec.Struct, frozen=True, kw_only=True):
    """One configuration that passed."""

    config: Config
    level: int
    answer: Any
    """The original solution's, in JSON."""
    prompt: str
    """The statement, as the environment gives it."""
    trace: tuple[Move, ...]
    """The shortest winning trace found, `done` last."""
    certificate: Certificate | None = None
    guess_rate: float = 0.0
    """How often the commonest answer among other configurations with this prompt is right."""
    random_rate: float = 0.0
    """How often an agent won that calls tools at random."""
    pass_rate: PassRate | None = None

    @property
    def num_calls(self) -> int:
        """Calls of the trace, `done` among them."""
        return len(self.trace)


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """An environment with the tasks that passed."""

    draft: Draft
    tools: list[Schema]
    """OpenAI function schemas, `done` among them."""
    changes: tuple[str, ...]
    """Tools that changed hidden state in some trace."""
    unused: tuple[str, ...] = ()
    """Tools that no trace calls."""
    tasks: tuple[MadeTask, ...]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What did not pass: a problem, an environment or one configuration of it."""

    problem: str
    env: str = ""
    config: Config | None = None
    stage: str
    """Where it ended, e.g. `extract`, `verify`, `audit`, `filter`, `dedup`."""
    reason: str
    """A few words that many refusals share, e.g. `recursion`: what reports count."""
    detail: str = ""
    """What exactly, with the cure where there is one."""
