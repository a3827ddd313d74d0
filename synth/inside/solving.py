"""Runs solutions and generators, which lie beside it, in the sandbox."""

import io
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec

from envpool.blame import in_words

# Where sources lie: beside the directory of this module.
FOLDER = Path(__file__).parent.parent

_compiled: dict[str, CodeType] = {}


def solve(source: str, entry: str, arguments: dict[str, Any], *, is_stdin: bool) -> dict[str, Any]:
    """What a solution answers, as `{"answer": ...}`; else `{"reason": ..., "detail": ...}`.

    The module is run anew each time, so that no call depends on those before. A lack of memory is raised.
    """
    random.seed(0)
    try:
        found = (
            _printed(source, arguments["stdin"])
            if is_stdin
            else getattr(load(source), entry)(**arguments)
        )
    except MemoryError:
        raise
    # The fault boundary of a solution's code, which may also call exit().
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return {"reason": "raised", "detail": f"{in_words(error)}{_line(error, source)}"}
    try:
        return {"answer": plain(found)}
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        return {"reason": "no_json", "detail": in_words(error)}


def generate(source: str, count: int, level: int, seed: int) -> list[dict[str, Any]]:
    """`count` sets of arguments, each from its own chance: a longer draw begins with the shorter one."""
    make: Callable[..., Any] = load(source).generate
    drawn = []
    for index in range(count):
        arguments = plain(make(random.Random(f"{seed}/{level}/{index}"), level))
        if not isinstance(arguments, dict):
            kind = type(arguments).__name__
            raise TypeError(f"generate() gave a {kind}: return a dict of arguments by name")
        drawn.append(arguments)
    return drawn


def check(source: str, cases: list[list[Any]]) -> list[bool]:
    """What a checker says of answers: `cases` are pairs of an answer and the configuration it is to."""
    judge: Callable[..., Any] = load(source).check
    return [bool(judge(answer, **config)) for answer, config in cases]


def load(source: str, name: str = "") -> ModuleType:
    """Run the module whose text is the file `source`, under a name of its own."""
    name = name or Path(source).stem
    if source not in _compiled:
        path = FOLDER / source
        _compiled[source] = compile(path.read_text(), str(path), "exec")
    module = ModuleType(name)
    # Where dataclasses look for what annotations mean.
    sys.modules[name] = module
    exec(_compiled[source], vars(module))
    return module


def plain(value: Any) -> Any:
    """`value` as JSON gives it back, sets sorted. Raises TypeError or ValueError for what is none."""
    built = msgspec.to_builtins(value, order="sorted")
    if not is_finite(built):
        raise ValueError("a number is not finite, which JSON has no word for")
    return msgspec.json.decode(msgspec.json.encode(built))


def is_finite(value: Any) -> bool:
    """Whether no number in it is infinite or none at all."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    if isinstance(value, dict):
        return all(is_finite(part) for pair in value.items() for part in pair)
    return True


def _printed(source: str, text: str) -> str:
    """What a program prints that reads `text` from standard input."""
    before = sys.stdin, sys.stdout, sys.modules["__main__"]
    written = io.BytesIO()
    printer = io.TextIOWrapper(written, write_through=True)
    sys.stdin = io.TextIOWrapper(io.BytesIO(text.encode()))
    sys.stdout = printer
    try:
        load(source, "__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    finally:
        sys.stdin, sys.stdout, sys.modules["__main__"] = before
    printer.flush()
    return written.getvalue().decode()


def _line(error: BaseException, source: str) -> str:
    """In which line of the source it was raised, where it was."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name == source:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""
