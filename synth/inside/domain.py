"""Which calls are considered: every tool, with arguments from a bounded domain."""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from envpool.env import ToolEnv
from envpool.task import Config
from envpool.tools import Schema

from .agents import kind_of
from .lockstep import Call

# Whole numbers from 0 to the length of what is hidden, and at least and at most to these.
MIN_TOP, MAX_TOP = 4, 16
# Values of one type that are considered, and calls of one tool.
MAX_VALUES, MAX_CALLS = 24, 144

Move = Sequence[Any]
"""Name, arguments and observation of a call of the oracle."""


def calls_of(env: ToolEnv, config: Config, trace: Sequence[Move]) -> list[list[Call]]:
    """Calls by tool, tools with few calls first."""
    domain = _Domain(config, trace)
    found: list[list[Call]] = []
    for name, tool in env._tools.items():
        if name == "done":
            continue
        made = domain.arguments(name, tool.schema["function"]["parameters"])
        seen = [dict(arguments) for other, arguments, _ in trace if other == name]
        keyed = {json.dumps(one, sort_keys=True): one for one in (*seen, *made)}
        calls = (Call.of(tool, arguments) for arguments in keyed.values())
        found.append([call for call in calls if call is not None])
    return sorted(found, key=len)


class _Domain:
    """Values by type, those that the oracle's calls had first, then small ones, then others seen."""

    def __init__(self, config: Config, trace: Sequence[Move]) -> None:
        asked = list(_parts([arguments for _, arguments, _ in trace]))
        observed = [one for _, _, text in trace for one in _parts(_decoded(text))]
        hidden = list(_parts(config))
        sizes = [len(part) for part in (*hidden, *asked) if isinstance(part, list | str)]
        whole = range(min(MAX_TOP, max([MIN_TOP, *sizes])) + 1)
        self._values: dict[str, list[Any]] = {
            "integer": [x for x in (*whole, *asked, *observed) if type(x) is int],
            "number": [x for x in (*whole, *asked, *observed) if type(x) in (int, float)],
            "string": [x for x in (*asked, *observed, *hidden) if isinstance(x, str)],
            "boolean": [False, True],
            "array": [x for x in (*asked, [], *observed) if isinstance(x, list)],
            "object": [x for x in asked if isinstance(x, dict)],
        }
        self._asked: dict[tuple[str, str], list[Any]] = {}
        for tool, arguments, _ in trace:
            for name, value in arguments.items():
                self._asked.setdefault((tool, name), []).append(value)

    def arguments(self, tool: str, schema: Schema) -> Iterator[dict[str, Any]]:
        """Sets of arguments for a tool's parameters, `MAX_CALLS` at most."""
        definitions = schema.get("$defs", {})
        options: list[list[tuple[str, Any]]] = []
        for name, part in schema["properties"].items():
            kind, described = kind_of(part, definitions)
            values = described.get("enum") or self._values.get(kind, [None])
            found = _distinct([*self._asked.get((tool, name), ()), *values])
            pairs: list[tuple[str, Any]] = [(name, value) for value in found]
            options.append(pairs if name in schema["required"] else [("", None), *pairs])
        while math.prod(map(len, options)) > MAX_CALLS:
            max(options, key=len).pop()
        for chosen in itertools.product(*options):
            yield {name: value for name, value in chosen if name}


def _parts(value: Any) -> Iterator[Any]:
    """A value and all that it is made of."""
    yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _parts(part)


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())[:MAX_VALUES]
