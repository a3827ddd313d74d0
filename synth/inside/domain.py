"""Which calls are considered: every tool, with arguments from a bounded domain."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import Any

from envpool.env import ToolEnv
from envpool.task import Config
from envpool.tools import Schema

from .agents import kind_of
from .lockstep import Call

# Whole numbers from 0 to the length of what is hidden, and at least and at most to these.
MIN_TOP, MAX_TOP = 4, 16
# Values of one type that are considered, and calls of one tool.
MAX_VALUES, MAX_CALLS = 40, 200

Move = Sequence[Any]
"""Name, arguments and observation of a call of the oracle."""


def calls_of(env: ToolEnv, config: Config, trace: Sequence[Move]) -> tuple[list[list[Call]], bool]:
    """Calls by tool, tools with few calls first, and whether some had to be left out."""
    domain = _Domain(config, trace)
    found: list[list[Call]] = []
    for name, tool in env._tools.items():
        if name == "done":
            continue
        made = domain.arguments(tool.schema["function"]["parameters"])
        seen = [dict(arguments) for other, arguments, _ in trace if other == name]
        keyed = {json.dumps(one, sort_keys=True): one for one in (*seen, *made)}
        calls = (Call.of(tool, arguments) for arguments in keyed.values())
        found.append([call for call in calls if call is not None])
    return sorted(found, key=len), domain.is_cut


class _Domain:
    def __init__(self, config: Config, trace: Sequence[Move]) -> None:
        parts = list(_parts([config, *(arguments for _, arguments, _ in trace)]))
        observed = [one for _, _, text in trace for one in _parts(_decoded(text))]
        sizes = [len(part) for part in parts if isinstance(part, list | str)]
        top = min(MAX_TOP, max([MIN_TOP, *sizes]))
        asked = list(_parts([arguments for _, arguments, _ in trace]))
        self._values: dict[str, list[Any]] = {
            "integer": [
                *range(top + 1),
                *(one for one in (*asked, *observed) if type(one) is int),
            ],
            "number": [
                *range(MIN_TOP),
                *(x for x in (*asked, *observed) if type(x) in (int, float)),
            ],
            "string": [x for x in (*asked, *observed, *parts) if isinstance(x, str)],
            "boolean": [False, True],
            "array": [[], *(x for x in (*asked, *observed) if isinstance(x, list))],
            "object": [x for x in asked if isinstance(x, dict)],
        }
        self._values = {kind: _distinct(values) for kind, values in self._values.items()}
        self.is_cut = False

    def arguments(self, schema: Schema) -> Iterable[dict[str, Any]]:
        """Sets of arguments for a tool's parameters."""
        definitions = schema.get("$defs", {})
        options: list[list[tuple[str, Any]]] = []
        for name, part in schema["properties"].items():
            kind, described = kind_of(part, definitions)
            values = described.get("enum") or self._values.get(kind, [None])
            pairs: list[tuple[str, Any]] = [(name, value) for value in values]
            options.append(pairs if name in schema["required"] else [("", None), *pairs])
        size = 1
        for pairs in options:
            size *= len(pairs)
        if size > MAX_CALLS:
            self.is_cut = True
            rng = Random(0)
            chosen = ([rng.choice(pairs) for pairs in options] for _ in range(MAX_CALLS))
        else:
            chosen = itertools.product(*options)
        return [{name: value for name, value in pairs if name} for pairs in chosen]


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
