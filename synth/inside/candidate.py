"""The draft's environment, as far as it is looked at from inside its own process.

What is found here is told by a process in which the draft's code runs. The verifier believes it about the
draft only where a lie would harm the draft alone; answers are compared with those of other processes.
"""

import importlib
import pickle
from collections.abc import Generator
from functools import cache
from io import BytesIO
from random import Random
from typing import Any

from configs.load import ConfigError
from envpool.blame import in_words
from envpool.conformance import check_envs
from envpool.env import ToolEnv, canonical, seed_globals
from envpool.source import PoolSource
from envpool.task import Config
from envpool.tools import call_text

from .solving import FOLDER, plain

# The module that is the draft.
DRAFT = "draft"
# A trial of one environment may take this long.
TRIAL_S = 5.0


@cache
def env_class() -> type[ToolEnv]:
    """The one environment that the draft defines. Raises ValueError for none or several."""
    module = importlib.import_module(DRAFT)
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, ToolEnv)
        and value.__module__ == DRAFT
        and not name.startswith("_")
    ]
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise ValueError(f"a draft defines exactly one ToolEnv, this one {names}")
    return found[0]


@cache
def uses_chance() -> bool:
    """Whether its text speaks of `np_random`; else no generator need be made for each episode."""
    return "np_random" in (FOLDER / f"{DRAFT}.py").read_text()


def begin(config: Config, env: ToolEnv | None = None) -> tuple[ToolEnv, str]:
    """An environment at the start of an episode, and its statement."""
    env = env or env_class()()
    seed_globals(0)
    statement, _ = env.reset(seed=0 if uses_chance() else None, options=config)
    return env, statement


def facts(config: Config) -> dict[str, Any]:
    """Statements of several resets, the reference in JSON, and schemas; `refused` for no configuration."""
    try:
        env, statement = begin(config)
    except ConfigError as error:
        return {"refused": str(error)}
    reference = plain(env.reference())
    # An episode in between must leave nothing behind.
    for name, tool in env._tools.items():
        if not tool.schema["function"]["parameters"]["required"]:
            env.step(call_text(name, {}))
    again = [begin(config, env)[1], begin(config)[1]]
    if plain(env.reference()) != reference:
        raise ValueError("reference() gave two answers for one configuration and seed")
    return {
        "statement": statement,
        "again": again,
        "reference": canonical(reference, env.Answer),
        "tools": env.tools(),
    }


def conform(config: Config) -> str:
    """What the conformance trial of pools has to say against it; empty if nothing."""
    cls = env_class()
    source = PoolSource(
        name=DRAFT,
        version="",
        envs={cls.__name__: cls},
        train=(),
        trusted=False,
        tasks={(cls.__name__, 0): [config]},
    )
    try:
        check_envs(source, {cls.__name__: [0]}, timeout_s=TRIAL_S)
    except ConfigError as error:
        return str(error).replace(f"{FOLDER}/", "")
    return ""


def draw(count: int, level: int, seed: int) -> list[Config]:
    """What its own `sample` gives; nothing if it has none."""
    drawn = []
    for index in range(count):
        try:
            config = env_class().sample(Random(f"{seed}/{level}/{index}"), level)
        except NotImplementedError:
            return []
        drawn.append(plain(config))
    return drawn


def changing(config: Config, calls: list[tuple[str, dict[str, Any]]]) -> list[bool]:
    """Which calls of a sequence, played from the start, change hidden state."""
    env, _ = begin(config)
    before = digest(env)
    changed = []
    for name, arguments in calls:
        env.step(call_text(name, arguments))
        after = digest(env)
        changed.append(after != before)
        before = after
    return changed


def judged(config: Config, answers: list[Any]) -> list[float]:
    """Rewards of answers, each given as the first call of an episode of its own."""
    env, rewards = None, []
    for answer in answers:
        env, _ = begin(config, env)
        rewards.append(env.step(call_text("done", {"answer": answer}))[1])
    return rewards


def after_done(config: Config, wrong: Any, right: Any) -> list[float]:
    """Rewards of a wrong answer and of the right one after it: the first has to be the last."""
    env, _ = begin(config)
    texts = [call_text("done", {"answer": answer}) for answer in (wrong, right)]
    return [env.step(text)[1] for text in texts]


def digest(env: ToolEnv) -> bytes:
    """All that an instance holds, as bytes that are equal where it is. Raises ValueError if it cannot be."""
    state = {key: value for key, value in vars(env).items() if key != "_is_over"}
    return frozen(state)


def frozen(state: Any) -> bytes:
    """Without the memory of which equal parts are one object, where there are no cycles."""
    buffer = BytesIO()
    pickler = pickle.Pickler(buffer, 5)
    pickler.fast = True
    try:
        pickler.dump(state)
        return buffer.getvalue()
    except (ValueError, RecursionError):
        return thawable(state)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ValueError(f"hidden state cannot be copied: {in_words(error)}") from error


def thawable(state: Any) -> bytes:
    """With it, so that `pickle.loads` gives an equal one."""
    try:
        return pickle.dumps(state, 5)
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        raise ValueError(f"hidden state cannot be copied: {in_words(error)}") from error


class _Stripped:
    """All that an oracle may look at: the statement. What else it reaches for is noted."""

    def __init__(self, statement: str) -> None:
        object.__setattr__(self, "_told", (statement, []))

    def statement(self) -> str:
        return object.__getattribute__(self, "_told")[0]

    def __getattribute__(self, name: str) -> Any:
        if name in ("statement", "__class__"):
            return object.__getattribute__(self, name)
        object.__getattribute__(self, "_told")[1].append(name)
        raise AttributeError(f"an oracle has statement() only, not {name}")

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_told")[1].append(name)
        raise AttributeError(f"an oracle keeps what it knows in variables, not in {name}")


_oracle: Generator[Any, str, None] | None = None
_reached: list[str] = []


def oracle_begin(statement: str) -> dict[str, Any]:
    """The first call of the oracle, which knows the statement and nothing else."""
    global _oracle, _reached
    seed_globals(0)
    stripped = _Stripped(statement)
    _reached = object.__getattribute__(stripped, "_told")[1]
    make: Any = env_class().oracle
    _oracle = make(stripped)
    return _next(None)


def oracle_next(observation: str) -> dict[str, Any]:
    """Its next call, once it has seen what was answered to the last."""
    return _next(observation)


def _next(observation: str | None) -> dict[str, Any]:
    assert _oracle is not None, "it has begun"
    try:
        name, arguments = next(_oracle) if observation is None else _oracle.send(observation)
        told = {"name": str(name), "arguments": plain(arguments)}
    except StopIteration:
        told = {"end": True}
    # The fault boundary of the oracle's code.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        told = {"raised": in_words(error)}
    return {"reached": sorted(set(_reached))} if _reached else told
