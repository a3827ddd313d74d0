"""`Problem`: a coding problem as the factory takes it, wherever it came from.

    statement + solutions (+ tests, + a generator of inputs)  ->  drafts of environments

The text of a solution is a module of its own: imports, constants, helpers and the entry function. It is
never run in the process that reads it.
"""

import ast
import hashlib
from typing import Any, ClassVar, Literal

import msgspec

# What a solution's entry function is called where a row does not say.
ENTRY = "solve"
# What a generator's and a checker's functions are called.
GENERATE = "generate"
CHECK = "check"


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One example with its right answer."""

    # Not one of pytest's, which go by the name.
    __test__: ClassVar[bool] = False

    args: dict[str, Any]
    """Arguments of the entry function by name; of a problem on standard input `{"stdin": text}`."""
    answer: Any
    """What it returns, in JSON; of a problem on standard input the text that it prints."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be computed, and how it can be."""

    id: str
    """Lower-case words joined by `_`; unique in a problem set."""
    statement: str
    """The task in words, as a human reads it, without examples of this set's tests."""
    solutions: tuple[str, ...]
    """Sources, each on its own. The first is the original, which decides; the others are independent."""
    entry: str = ENTRY
    """Name of the function in each solution."""
    kind: Literal["function", "stdin"] = "function"
    """Whether a solution is called, or reads standard input and prints."""
    tests: tuple[Test, ...] = ()
    generator: str = ""
    """Source with `generate(rng, level)`, which returns arguments as a dict; empty: from the tests."""
    checker: str = ""
    """Source with `check(answer, **args)`, where more than one answer is right."""
    concept: str = ""
    """What a solver must know: problems of one concept fall on one side of a split."""
    source: str = ""
    """Where it is from."""
    licence: str = ""
    place: str = ""
    """`file:line` it was read from."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that decides what becomes of it."""
        told = msgspec.structs.replace(self, place="", source="", licence="")
        return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


class ProblemError(ValueError):
    """A row that is no problem; the text names file, line, what is wrong and the cure."""


def entry_of(source: str, name: str = ENTRY) -> ast.FunctionDef:
    """The definition of a function at the top of a source. Raises ProblemError."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        at = f" in its line {line}" if line else ""
        raise ProblemError(f"the solution cannot be parsed{at}: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    known = f"it defines {', '.join(names)}" if names else "it defines no function"
    raise ProblemError(f"the solution has no function {name!r}: {known}")


def parameters_of(function: ast.FunctionDef) -> list[str]:
    """Names of its parameters. Raises ProblemError for *args, **kwargs and positional-only ones."""
    arguments = function.args
    if arguments.vararg or arguments.kwarg or arguments.posonlyargs:
        raise ProblemError(
            f"{function.name} takes * or / parameters: write them as plain named ones"
        )
    return [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
