"""Other configurations that could be the true one, for all that the statement says."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from types import FrameType
from typing import Any

import msgspec

from configs.load import ConfigError
from envpool.env import ToolEnv, canonical
from envpool.task import Config

from .candidate import begin, draw
from .solving import plain

# An alternative that takes longer to begin is left out.
PATIENCE_S = 0.5
# Changes tried for each alternative wanted.
TRIES = 6

_key = msgspec.json.Encoder(order="sorted").encode


def alternatives(
    config: Config, others: Sequence[Config], count: int, level: int, seed: int
) -> list[Config]:
    """Configurations with the same statement in which the true answer is wrong: `count` at most.

    Half of them are the true one with a small change, which are the hardest to tell apart; the others are
    drawn as tasks are.
    """
    env, statement = begin(config)
    answer = canonical(plain(env.reference()), env.Answer)
    rng = Random(f"{seed}/near")
    tried = {_key(config)}
    found: list[Config] = []
    near = (changed(config, rng) for _ in range(TRIES * count))
    far = (*others, *draw(count, level, seed))
    for source, wanted in ((near, (count + 1) // 2), (far, count), (near, count)):
        for one in source:
            if len(found) >= wanted:
                break
            key = _key(one)
            if key not in tried:
                tried.add(key)
                if is_alternative(one, statement, answer):
                    found.append(one)
    return found


def population(config: Config, others: Sequence[Config], count: int, level: int, seed: int) -> Any:
    """Statements and answers, in JSON, of configurations drawn as tasks are."""
    drawn = {_key(one): one for one in (config, *others, *draw(count, level, seed))}
    told = []
    for one in drawn.values():
        try:
            with _alarm():
                env, statement = begin(one)
                told.append([statement, canonical(plain(env.reference()), env.Answer)])
        except Exception:  # noqa: BLE001, S112 - one that it cannot play is none
            continue
    return told


def is_alternative(config: Config, statement: str, answer: Any) -> bool:
    """Whether an environment begins with this statement, and the answer is wrong there."""
    try:
        with _alarm():
            env, told = begin(config)
            return told == statement and not env.check(_typed(env, answer))
    except ConfigError:
        return False
    # The fault boundary of the draft's code: it may not know what to do with a changed one.
    except (Exception, SystemExit):  # noqa: BLE001
        return False


def changed(config: Config, rng: Random) -> Config:
    """The configuration with one small change, or two."""
    config = msgspec.json.decode(msgspec.json.encode(config))
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(config))
        if places:
            parent, key = rng.choice(places)
            parent[key] = _other(parent[key], rng)
    return config


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value stands that can be changed: its container and its key."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in list(pairs):
        if part is not None:
            yield value, key
        if isinstance(part, dict | list):
            yield from _places(part)


def _other(value: Any, rng: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value - 1, value + 1, value + 2, rng.randint(0, 2 * abs(value) + 3)))
    if isinstance(value, float):
        return rng.choice((value - 1, value + 1, value * 2))
    if isinstance(value, str):
        return "".join(_shuffled(list(value), rng, "abcdefghij0123456789"))
    if isinstance(value, list):
        return _shuffled(value, rng, value)
    return value


def _shuffled(items: list[Any], rng: Random, fresh: Sequence[Any]) -> list[Any]:
    """A list with two elements swapped, one replaced, left out, or put in."""
    items = list(items)
    how = rng.choice(("swap", "swap", "replace", "replace", "drop", "insert"))
    if len(items) < 2:
        how = "insert"
    if how == "swap":
        i, j = rng.sample(range(len(items)), 2)
        items[i], items[j] = items[j], items[i]
    elif how == "drop":
        del items[rng.randrange(len(items))]
    elif fresh:
        place = rng.randrange(len(items) + 1)
        size = 1 if how == "replace" else 0
        items[place : place + size] = [rng.choice(fresh)]
    return items


def _typed(env: ToolEnv, answer: Any) -> Any:
    return env._tools["done"].check({"answer": answer})["answer"]


@contextmanager
def _alarm() -> Iterator[None]:
    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
