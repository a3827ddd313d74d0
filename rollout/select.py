"""Which rollouts of a run to look at: filters, an order and a limit, given as `key=value`.

The line files are streamed: memory holds what is shown, never a run. A last line that is still being
written is left out; any other line that cannot be read is counted.
"""

import difflib
import heapq
import operator
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from configs.load import ConfigError
from rollout.evaluate import MODES, place
from rollout.files import RolloutRow
from rollout.ledger import ENDS
from rollout.types import StopReason

# Rollouts shown where no limit is given: a screen or two.
LIMIT = 5
# No run has more, and a longer number is more than a container can be told.
_LIMIT_DIGITS = 12

TEXTS: Mapping[str, Callable[[RolloutRow], str]] = {
    "env": lambda row: row.env,
    "pool": lambda row: row.pool,
    "task": lambda row: row.task_id,
    "group": lambda row: row.group_id,
    "actor": lambda row: row.actor,
    "stop": lambda row: row.stop,
    "state": lambda row: row.state or "",
    "set": lambda row: place(row.group_id).set,
    "mode": lambda row: place(row.group_id).mode,
}

NUMBERS: Mapping[str, Callable[[RolloutRow], float | None]] = {
    "reward": lambda row: row.reward,
    "step": lambda row: row.step,
    "lag": lambda row: row.lag,
    "turns": lambda row: len(row.turns),
    "bad_calls": lambda row: sum(turn.is_bad_call for turn in row.turns),
    "tokens": lambda row: sum(turn.num_reply_tokens for turn in row.turns),
    "seconds": lambda row: row.wall_s,
    "member": lambda row: row.member,
    "attempt": lambda row: row.attempt,
}

# Evaluations there are: of the training's two ends, and beside it.
LABELS = ("before", "after", "step_N")

# What a filter may ask for, where that is a closed set.
CHOICES: Mapping[str, Sequence[str]] = {
    "stop": [stop.value for stop in StopReason],
    "state": [state.value for state in ENDS],
    "mode": list(MODES),
}

# Texts whose values are few: one that no rollout has may be a slip.
NAMED = ("env", "pool")

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FILTER = re.compile(r"(\w+)(<=|>=|!=|=|<|>)(.*)", re.DOTALL)

_decode = msgspec.json.Decoder(RolloutRow).decode


class Order(StrEnum):
    """Which rollouts come first."""

    NEWEST = "newest"
    """Written last."""
    OLDEST = "oldest"
    """Written first."""
    LONGEST = "longest"
    """Most turns, then most sampled tokens."""
    WORST = "worst"
    """Lowest reward, then most bad calls; what has no reward comes last."""


@dataclass(slots=True, frozen=True, kw_only=True)
class Query:
    """What to show: rollouts that every one of `tests` accepts."""

    tests: tuple[Callable[[RolloutRow], bool], ...] = ()
    named: tuple[tuple[str, str], ...] = ()
    """Environments and pools that a filter wants: `env` or `pool`, and the name."""
    label: str = ""
    """Evaluation to read, `before`, `after` or `step_<N>`; empty: training."""
    order: Order = Order.NEWEST
    limit: int = LIMIT


@dataclass(slots=True, kw_only=True)
class Selection:
    """What was found, in order, and what was looked at on the way."""

    rows: list[RolloutRow] = field(default_factory=list)
    looked_at: int = 0
    unreadable: int = 0
    names: dict[str, set[str]] = field(default_factory=lambda: {key: set() for key in NAMED})
    """Environments (`env`) and pools (`pool`) among the rollouts looked at."""


def is_filter(argument: str) -> bool:
    """Whether an argument has the form of a filter."""
    return _FILTER.fullmatch(argument) is not None


def parse(arguments: Sequence[str]) -> Query:
    """Read `key=value` arguments; raises ConfigError naming the filter, the value and what is possible."""
    label, order, limit = "", Order.NEWEST, LIMIT
    tests: list[Callable[[RolloutRow], bool]] = []
    of_evaluation: list[str] = []
    named: list[tuple[str, str]] = []
    for argument in arguments:
        match = _FILTER.fullmatch(argument)
        if match is None:
            raise ConfigError(
                f"filter {argument!r} has no comparison: write it as key=value, and put quotes "
                "around < and >, which the shell takes for itself ('reward<0.5')"
            )
        key, compare, value = match.groups()
        if key in ("eval", "order", "limit") and compare != "=":
            raise ConfigError(f"filter {argument!r}: {key} takes = only")
        if key == "eval":
            is_beside = re.fullmatch(r"step_\d+", value) is not None
            label = value if is_beside else _choice(key, value, LABELS[:2], said=LABELS)
        elif key == "order":
            order = Order(_choice(key, value, list(Order)))
        elif key == "limit":
            limit = _limit(value)
        elif key in NUMBERS:
            tests.append(_number_test(key, compare, value))
        else:
            tests.append(_text_test(key, compare, value))
            if key in NAMED and compare == "=":
                named += [(key, one) for one in value.split(",")]
            if key in ("set", "mode"):
                of_evaluation.append(argument)
    if of_evaluation and not label:
        raise ConfigError(
            f"filter {of_evaluation[0]!r} is about evaluation: add eval=before, eval=after or eval=step_N"
        )
    return Query(tests=tuple(tests), named=tuple(named), label=label, order=order, limit=limit)


def unknown(query: Query, selection: Selection) -> list[str]:
    """What is said of each environment and pool that a filter wants and no rollout has."""
    said = []
    for key, name in query.named:
        if name not in (there := selection.names[key]):
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(there))}"
            said.append(f"no {key} {name}: {hint}")
    return said


def select(run_dir: Path, query: Query) -> Selection:
    """Read the run's files as far as the query needs."""
    selection = Selection()
    paths = log_paths(run_dir, query.label)
    if query.order is Order.NEWEST:
        for path in reversed(paths):
            newest = deque(_matches([path], query, selection), query.limit - len(selection.rows))
            selection.rows += reversed(newest)
            if len(selection.rows) == query.limit:
                break
    elif query.order is Order.OLDEST:
        for row in _matches(paths, query, selection):
            selection.rows.append(row)
            if len(selection.rows) == query.limit:
                break
    else:
        key = _length if query.order is Order.LONGEST else _badness
        selection.rows = heapq.nsmallest(query.limit, _matches(paths, query, selection), key=key)
    return selection


def log_paths(run_dir: Path, label: str) -> list[Path]:
    """The files of the rollout log, or of one evaluation, in the order they were written."""
    if label:
        path = run_dir / "rollouts" / f"eval_{label}.jsonl"
        return [path] if path.exists() else []
    parts = (run_dir / "rollouts").glob("part_*.jsonl")
    return sorted(parts, key=lambda path: (len(path.name), path.name))


def labels(run_dir: Path) -> list[str]:
    """The evaluations that a run has written."""
    paths = (run_dir / "rollouts").glob("eval_*.jsonl")
    return [path.stem.removeprefix("eval_") for path in sorted(paths)]


def _matches(paths: Iterable[Path], query: Query, selection: Selection) -> Iterator[RolloutRow]:
    for path in paths:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    row = _decode(line)
                except msgspec.MsgspecError:
                    selection.unreadable += line.endswith(b"\n")
                    continue
                selection.looked_at += 1
                for key in NAMED:
                    selection.names[key].add(TEXTS[key](row))
                if all(test(row) for test in query.tests):
                    yield row


def _length(row: RolloutRow) -> tuple[int, int]:
    return -len(row.turns), -sum(turn.num_reply_tokens for turn in row.turns)


def _badness(row: RolloutRow) -> tuple[bool, float, int]:
    bad_calls = sum(turn.is_bad_call for turn in row.turns)
    return row.reward is None, row.reward or 0.0, -bad_calls


def _number_test(key: str, compare: str, value: str) -> Callable[[RolloutRow], bool]:
    get, is_so = NUMBERS[key], _COMPARE[compare]
    if value == "none" and compare in ("=", "!="):
        return lambda row: (get(row) is None) is (compare == "=")
    try:
        wanted = float(value)
    except ValueError as error:
        raise ConfigError(
            f"filter {key}{compare}{value}: {value!r} is no number; {key} takes = != < <= > >= and "
            "a number, or =none and !=none for rollouts that have none"
        ) from error

    def test(row: RolloutRow) -> bool:
        number = get(row)
        return number is not None and is_so(number, wanted)

    return test


def _text_test(key: str, compare: str, value: str) -> Callable[[RolloutRow], bool]:
    if key not in TEXTS:
        known = [*TEXTS, *NUMBERS, "eval", "order", "limit"]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"filter {key!r} is not known: {hint}filters are {', '.join(known)}")
    if compare not in ("=", "!="):
        raise ConfigError(f"filter {key}{compare}{value}: {key} is a text and takes = and != only")
    get = TEXTS[key]
    wanted = value.split(",")
    if key == "group":
        wanted = [_group_id(one) for one in wanted]
    for one in wanted:
        if key in CHOICES:
            _choice(key, one, CHOICES[key])
    return lambda row: (get(row) in wanted) is (compare == "=")


def _group_id(text: str) -> str:
    """A group's id by its number: `12` and `g12` are g000012."""
    match = re.fullmatch(r"g?([0-9]+)", text)
    return f"g{match[1]:0>6}" if match else text


def _choice(key: str, value: str, choices: Sequence[str], said: Sequence[str] | None = None) -> str:
    if value not in choices:
        raise ConfigError(f"filter {key}={value}: {key} is one of {', '.join(said or choices)}")
    return value


def _limit(value: str) -> int:
    if not value.isdecimal() or len(value) > _LIMIT_DIGITS or int(value) < 1:
        raise ConfigError(
            f"filter limit={value}: limit is a whole number from 1 on, below a trillion"
        )
    return int(value)
