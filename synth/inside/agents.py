"""Agents that must not win, and calls that must not harm: played in the draft's own process.

They know schemas and observations, as any agent does.
"""

import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

from envpool.blame import in_words
from envpool.env import ToolEnv
from envpool.task import Config
from envpool.tools import Schema, call_text

from .candidate import begin, digest

# What an agent answers that knows nothing.
CONSTANTS: tuple[Any, ...] = (0, 1, -1, "", [], {}, False, True, None, "0", "a", [0])
# Answers tried that were seen in the first observations.
MAX_SEEN = 64
# Calls of the agent that calls at random, before it answers.
MAX_CALLS = 16
# Well-typed and unusual: an environment has to say no, not fall over.
ODD: dict[str, tuple[Any, ...]] = {
    "integer": (-1, 10**6, -(10**6), 0),
    "number": (-1.5, 1e18, 0.0),
    "string": ("", "no such thing", "\u00e9\n'\"", "-1"),
    "boolean": (True,),
    "array": ([],),
    "object": ({},),
}
# Of no type that a parameter is likely to have.
WRONG: dict[str, tuple[Any, ...]] = {
    "integer": ("1", 1.5, None, [1], True),
    "number": ("1", None, [1]),
    "string": (1, None, ["a"], {}),
    "boolean": ("true", 1, None),
    "array": ("[1]", 1, None, {}),
    "object": ("{}", 1, None, [1]),
}


def constants_that_win(config: Config) -> list[Any]:
    """Answers of an agent that asks nothing."""
    return [answer for answer, reward in _rewards(config, (), list(CONSTANTS)) if reward > 0]


def seen_that_win(config: Config) -> list[Any]:
    """Answers that win and that one call of each tool without parameters shows."""
    env, _ = begin(config)
    names = [name for name, schema in _parameters(env).items() if not schema["required"]]
    calls = tuple(call_text(name, {}) for name in names if name != "done")
    seen: list[Any] = []
    for call in calls:
        for value in _values(env.step(call)[0]):
            if value not in seen:
                seen.append(value)
    return [answer for answer, reward in _rewards(config, calls, seen[:MAX_SEEN]) if reward > 0]


def wins_at_random(config: Config, episodes: int, seed: int) -> int:
    """Episodes won by an agent that calls tools at random and answers with what it saw last."""
    env, won = None, 0
    for episode in range(episodes):
        rng = Random(f"{seed}/{episode}")
        env, statement = begin(config, env)
        schemas = _parameters(env)
        names = [name for name in schemas if name != "done"]
        seen = list(_values(statement))
        last: Any = 0
        for _ in range(rng.randint(1, MAX_CALLS) if names else 0):
            name = rng.choice(names)
            observation = env.step(call_text(name, drawn_arguments(schemas[name], rng, seen)))[0]
            values = list(_values(observation))
            if values:
                last = values[-1]
                seen += values[:8]
        won += env.step(call_text("done", {"answer": last}))[1] > 0
    return won


def mishaps(config: Config) -> list[dict[str, str]]:
    """What bad calls did that they must not: `{"reason": ..., "detail": ...}` each."""
    env, _ = begin(config)
    before = digest(env)
    found: list[dict[str, str]] = []
    for action in _bad_calls(env):
        try:
            _, reward, is_over, _, info = env.step(action)
        # The fault boundary of the draft's code.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            found.append({"reason": "fault", "detail": f"{action[:200]} raised {in_words(error)}"})
            env, _ = begin(config)
            continue
        if is_over or reward:
            found.append({"reason": "bad call ends", "detail": f"{action[:200]} ended the episode"})
        after = digest(env)
        if after != before and info["is_bad_call"]:
            detail = f"{action[:200]} was refused, and changed hidden state before that"
            found.append({"reason": "bad call changes state", "detail": detail})
        if after != before or is_over:
            env, _ = begin(config, env)
            before = digest(env)
    return found


def drawn_arguments(schema: Schema, rng: Random, seen: list[Any]) -> dict[str, Any]:
    """Arguments of the right types: small numbers, and what was seen."""
    definitions = schema.get("$defs", {})
    return {
        name: _drawn(part, definitions, rng, seen)
        for name, part in schema["properties"].items()
        if name in schema["required"] or rng.random() < 0.5
    }


def kind_of(schema: Schema, definitions: Schema) -> tuple[str, Schema]:
    """The type that a schema names, the first of several, and where it is described."""
    if "$ref" in schema:
        return kind_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return kind_of(schema[key][0], definitions)
    kind = schema.get("type", "any")
    return (kind[0] if isinstance(kind, list) else kind), schema


def _drawn(schema: Schema, definitions: Schema, rng: Random, seen: list[Any]) -> Any:
    kind, schema = kind_of(schema, definitions)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("integer", "number"):
        numbers = [value for value in seen if type(value) is int]
        return rng.choice(numbers) if numbers and rng.random() < 0.5 else rng.randint(0, 9)
    if kind == "string":
        texts = [value for value in seen if isinstance(value, str)]
        return rng.choice(texts) if texts else rng.choice("abcxyz")
    if kind == "array":
        items = schema.get("items", {})
        return [_drawn(items, definitions, rng, seen) for _ in range(rng.randint(0, 3))]
    if kind == "object":
        parts = schema.get("properties", {})
        return {name: _drawn(part, definitions, rng, seen) for name, part in parts.items()}
    return rng.randint(0, 9) if kind == "any" else None


def _values(text: str) -> Iterator[Any]:
    """What an agent may take for a value in a text: all of it, parts of its JSON, words and numbers."""
    yield text
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        yield len(whole)
        yield from whole
    elif isinstance(whole, dict):
        yield from whole.values()
    if whole is not None:
        yield whole
    for word in re.findall(r"-?\d+(?:\.\d+)?", text):
        yield float(word) if "." in word else int(word)


def _rewards(
    config: Config, calls: tuple[str, ...], answers: list[Any]
) -> Iterator[tuple[Any, float]]:
    env = None
    for answer in answers:
        env, _ = begin(config, env)
        for call in calls:
            env.step(call)
        yield answer, env.step(call_text("done", {"answer": answer}))[1]


def _parameters(env: ToolEnv) -> dict[str, Schema]:
    """Schema of the parameters of each tool."""
    functions = [schema["function"] for schema in env.tools()]
    return {function["name"]: function["parameters"] for function in functions}


def _bad_calls(env: ToolEnv) -> Iterator[str]:
    """Actions that are no calls, calls that fit no tool, and calls that fit and ask for nonsense."""
    yield from ("", "{", "[]", "null", "0", '{"name": 3}', '{"name": "done"', '{"arguments": {}}')
    yield call_text("no_such_tool", {})
    yield '{"name": "done", "arguments": []}'
    for name, schema in _parameters(env).items():
        definitions = schema.get("$defs", {})
        rng = Random(0)
        plain = drawn_arguments(schema, rng, [])
        yield call_text(name, {**plain, "no_such_parameter": 1})
        if schema["required"]:
            yield call_text(name, {})
        if name == "done":
            continue
        for part, described in schema["properties"].items():
            kind, _ = kind_of(described, definitions)
            for value in (*WRONG.get(kind, ()), *ODD.get(kind, ())):
                yield call_text(name, {**plain, part: value})
