"""An environment of either kind, played the same way: ours, and classes after CodeGym's contract."""

import ast
import copy
import importlib
import inspect
import json
import pickle
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from envpool.blame import in_words
from envpool.env import ToolEnv, canonical, seed_globals
from envpool.folder import env_id_of
from envpool.task import VARIATION
from envpool.tools import call_text
from envpool.varied import playable

from .candidate import digest
from .solving import plain

# A program that makes more calls than this does not end.
MAX_CALLS = 4096

Played = list[tuple[str, dict[str, Any], str]]


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Which class of which module, and by which contract it is."""

    kind: str
    """`millrace` or `codegym`."""
    module: str
    name: str
    """Id of an environment of ours; else the name of the class."""


class Subject(Protocol):
    """`begin` first, for each episode."""

    done: str
    """The tool that takes the answer."""
    hidden: Any
    """The configuration as the environment reads it."""
    is_strict: bool
    """Whether the reference alone is right."""

    def begin(self, config: Any) -> str:
        """Start an episode, anew in every respect; what it says at the start."""
        ...

    def tools(self) -> dict[str, bool]:
        """Tools but `done`, and whether they take parameters that must be given."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str: ...

    def is_won(self) -> bool:
        """Whether some answer of this episode earned a reward."""
        ...

    def reference(self) -> Any:
        """In JSON."""
        ...

    def read(self, answer: Any) -> Any:
        """An answer in the form of the reference."""
        ...

    def state(self) -> bytes:
        """Equal while nothing but counters of calls changes."""
        ...

    def oracle(self) -> Played | None:
        """Have the environment's own program play this episode; None if it has none."""
        ...


def subject_of(where: Mapping[str, str]) -> Subject:
    """Raises ValueError where the module has no such class, and whatever it raises."""
    at = msgspec.convert(where, Where)
    return Native(at) if at.kind == "millrace" else Upstream(at)


class Native:
    """A `ToolEnv`, by the rules of its configuration's variation."""

    done = "done"

    def __init__(self, where: Where) -> None:
        self._class: type[ToolEnv] = _class_in(
            where, lambda one: issubclass(one, ToolEnv) and env_id_of(one.__name__) == where.name
        )
        self.is_strict = self._class.check is ToolEnv.check

    def begin(self, config: Any) -> str:
        seed_globals(0)
        self._plain = self._class()
        self._env = playable(self._plain, config)
        self._is_won = False
        self._config = copy.deepcopy(config)
        self.hidden = {key: part for key, part in config.items() if key != VARIATION}
        return self._env.reset(seed=0, options=self._config)[0]

    def tools(self) -> dict[str, bool]:
        functions = [schema["function"] for schema in self._env.tools()]
        return {
            one["name"]: bool(one["parameters"]["required"])
            for one in functions
            if one["name"] != self.done
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        observation, reward, *_ = self._env.step(call_text(name, dict(arguments)))
        self._is_won = self._is_won or reward > 0
        return observation

    def is_won(self) -> bool:
        return self._is_won

    def reference(self) -> Any:
        return self.read(plain(self._plain.reference()))

    def read(self, answer: Any) -> Any:
        return canonical(answer, self._class.Answer)

    def state(self) -> bytes:
        return digest(self._plain)

    def oracle(self) -> Played | None:
        if self._class.oracle is ToolEnv.oracle:
            return None
        played: Played = []
        moves = self._env.oracle()
        name, arguments = next(moves)
        while len(played) < MAX_CALLS:
            observation = self.call(name, arguments)
            played.append((name, plain(arguments), observation))
            if name == self.done:
                break
            try:
                name, arguments = moves.send(observation)
            except StopIteration:
                break
        return played


class Upstream:
    """A `gymnasium.Env` after CodeGym's contract, as its author wrote it."""

    done = "Done"

    def __init__(self, where: Where) -> None:
        self._class: Any = _class_in(where, lambda one: one.__name__ == where.name)
        self._counters: frozenset[str] | None = None
        self.is_strict = True

    def begin(self, config: Any) -> str:
        """`config` is the literal of a dict; empty for what the class starts with."""
        self.hidden = self.defaults() if not config else ast.literal_eval(config)
        self._env = self._made(config)
        if self._counters is None:
            self._counters = self._counting()
            self._env = self._made(config)
        return ""

    def defaults(self) -> dict[str, Any]:
        """The options that `reset` asks for, with what it takes where none is given."""
        asked = _Asked()
        self._class().reset(options=asked)
        return asked.defaults

    def tools(self) -> dict[str, bool]:
        return {
            name: _needs_arguments(getattr(self._env, name, None))
            for name in self._env.func_mapping
            if name != self.done
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        action = json.dumps({"name": name, "parameters": dict(arguments)})
        return str(self._env.step(action)[1])

    def is_won(self) -> bool:
        return float(self._env.reward) > 0

    def reference(self) -> Any:
        return plain(self._env.get_ref_answer())

    def read(self, answer: Any) -> Any:
        return answer

    def state(self) -> bytes:
        return repr(self._parts(self._counters or frozenset())).encode()

    def oracle(self) -> Played | None:
        if not hasattr(self._env, "solve"):
            return None
        played: Played = []
        step = self._env.step

        def noted(action: str) -> tuple[bool, str]:
            if len(played) == MAX_CALLS:
                raise RuntimeError(f"it made {MAX_CALLS} calls")
            known = len(played)
            answered = step(action)
            call = json.loads(action)
            # What a tool calls by itself is part of its own call.
            del played[known:]
            played.append((call["name"], call.get("parameters") or {}, str(answered[1])))
            return answered

        self._env.step = noted
        try:
            self._env.solve()
        finally:
            del self._env.step
        return played

    def _made(self, config: Any) -> Any:
        if not config:
            return self._class()
        text = f"{self._class.__name__}@{config}"
        try:
            env = self._class.from_env_str(text)
        # The fault boundary of a class that cannot read what it should, such as text with a mark in it.
        except Exception:  # noqa: BLE001
            env = None
        if env is None:
            env = self._class()
            env.reset(options=ast.literal_eval(config))
        return env

    def _counting(self) -> frozenset[str]:
        """Attributes that change with any call, of no tool at all too."""
        before = self._parts(frozenset())
        self.call("no such tool", {})
        after = self._parts(frozenset())
        changed = {name for name in after if after[name] != before.get(name)}
        return frozenset({*changed, "_done", "_reward", "step"})

    def _parts(self, without: frozenset[str]) -> dict[str, bytes]:
        members = sorted(vars(self._env).items())
        return {name: _bytes(part) for name, part in members if name not in without}


class _Asked(dict[str, Any]):
    """No options at all; it notes which were looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.defaults: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.defaults[key] = copy.deepcopy(default)
        return default


def _class_in(where: Where, is_wanted: Any) -> Any:
    module = importlib.import_module(where.module)
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and is_wanted(value):
            return value
    raise ValueError(f"the module defines no {where.name}")


def _needs_arguments(method: Any) -> bool:
    """Whether a tool has parameters without defaults; one that cannot be looked at may have."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return True
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(one.default is one.empty and one.kind not in variable for one in parameters)


def _bytes(part: Any) -> bytes:
    try:
        return pickle.dumps(part, 5)
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        return in_words(error).encode()
