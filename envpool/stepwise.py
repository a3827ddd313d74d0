"""What environments stand on that were compiled from a solution (`synth/extract/`).

The solution's variables are hidden state; its straight runs of statements, its conditions and its loops
over data are tools, one call each. Which call comes when is left to whoever plays.
"""

import copy
import functools
import pickle
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from envpool.env import ToolEnv, ToolInputError, tool

__all__ = [
    "NONE_LEFT",
    "Cursor",
    "Stepwise",
    "check_count",
    "operation",
    "plain",
    "result_of",
    "show",
    "shown",
]

F = TypeVar("F", bound=Callable[..., Any])

# What a cursor says behind its last item.
NONE_LEFT = "none left"
# Longest item of a sequence that is shown whole: one record, not the input.
MAX_SHOWN = 6
# Larger whole numbers do not fit what an observation is written with.
_MAX_INT = 2**63
# How an operation fails that is not possible now: the caller's mistake, never the environment's.
_NOT_NOW = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    StopIteration,
    TypeError,
    ValueError,
)


class State:
    """The variables of a solution under way, by name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ToolInputError(f"{name} has no value yet")


class Cursor:
    """A place in a list, which may change meanwhile, or in what else there was when the walk began."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items if isinstance(items, list) else list(items)
        self.num_seen = 0

    @property
    def is_at_end(self) -> bool:
        return self.num_seen >= len(self.items)

    def next(self) -> Any:
        """The next item; it moves on."""
        self.num_seen += 1
        return self.items[self.num_seen - 1]


class Stepwise(ToolEnv):
    """A `ToolEnv` whose hidden state is a solution's variables."""

    def begin(self, arguments: dict[str, Any]) -> State:
        """The state at the start of an episode: the arguments, to be changed at will."""
        self._now = State()
        self._now.__dict__.update(copy.deepcopy(arguments))
        return self._now


def operation(method: F) -> F:
    """A tool that works on `self._now`: all of it happens, or nothing and the caller is told."""

    @functools.wraps(method)
    def carry_out(self: Stepwise, **arguments: Any) -> Any:
        before = _keep(self._now.__dict__)
        try:
            return method(self, **arguments)
        except (ToolInputError, *_NOT_NOW) as error:
            # In place: who holds the state holds it still.
            self._now.__dict__.clear()
            self._now.__dict__.update(before())
            if isinstance(error, ToolInputError):
                raise
            raise ToolInputError(f"not possible now: {_said(error)}") from error

    return tool(carry_out)  # pyright: ignore[reportReturnType] - it has the method's signature


def _keep(values: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """What gives the values as they are now; hardly any call needs that, so that keeping is to be cheap.

    The bytes never leave this process, in which all that could be in them ran already.
    """
    try:
        return functools.partial(pickle.loads, pickle.dumps(values, pickle.HIGHEST_PROTOCOL))
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError):
        copied = copy.deepcopy(values)
        return lambda: copied


def check_count(number: int) -> None:
    """Raise ToolInputError for a count below 0, where Python's positions count from the end."""
    if number < 0:
        raise ToolInputError("it counts from 0")


def shown(state: State, *names: str) -> dict[str, Any]:
    """What the caller is told of variables: plain values, and of containers the size."""
    return {name: show(state.__dict__[name]) for name in names if name in state.__dict__}


def show(value: Any, *, is_record: bool = False) -> Any:
    """A value as it may be seen; `is_record`: an item of a sequence, whole if it is small."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -_MAX_INT <= value < _MAX_INT else str(value)
    try:
        items = list(value)
    except TypeError:
        return type(value).__name__
    is_record = is_record and isinstance(value, list | tuple) and len(items) <= MAX_SHOWN
    if is_record and all(_is_plain(item) for item in items):
        return [show(item) for item in items]
    return f"{len(items)} items"


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def plain(value: Any) -> Any:
    """An answer in JSON: sets sorted, tuples as lists."""
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if _is_plain(value):
        return show(value)
    return [plain(item) for item in value]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]


def result_of(solution: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What a solution makes of arguments, which it may change, in JSON."""
    return plain(solution(**copy.deepcopy(arguments)))
