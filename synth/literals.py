"""Values and examples read from Python text: literals only, nothing is evaluated.

An example is `assert f(1, [2]) == 3` and what means the same.
"""

import ast
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from synth.cutting import parse
from synth.problem import ProblemError, Test

# Examples of a problem that are kept, and the largest, in bytes of JSON: more decide nothing.
MAX_TESTS, MAX_TEST_BYTES = 64, 64 * 1024


class NotPlainError(ValueError):
    """A value that JSON has no form for."""


def plain(value: Any) -> Any:
    """`value` as JSON has it, tuples as lists. Raises NotPlainError for what JSON has not."""
    if isinstance(value, bool | str | None):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise NotPlainError("a whole number beyond 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotPlainError(f"the number {value}")
        return value
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise NotPlainError("a dict with a key that is no text")
        return {key: plain(one) for key, one in value.items()}
    raise NotPlainError(f"a {type(value).__name__}")


def literal(node: ast.expr) -> Any:
    """The value of a literal, as JSON. Raises NotPlainError for any other expression."""
    try:
        return plain(ast.literal_eval(node))
    except NotPlainError:
        raise
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise NotPlainError("an expression that is no literal") from error


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the parameters. Raises ProblemError where they do not fit."""
    if len(args) > len(names):
        raise ProblemError(f"{len(args)} arguments for the parameters ({', '.join(names)})")
    bound = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name not in names or name in bound:
            raise ProblemError(f"argument {name!r} for the parameters ({', '.join(names)})")
        bound[name] = value
    return bound


def few(tests: Sequence[Test]) -> tuple[Test, ...]:
    """The first examples, without repeated and huge ones."""
    kept: dict[bytes, Test] = {}
    for test in tests:
        data = msgspec.json.encode(test, order="sorted")
        if len(data) <= MAX_TEST_BYTES and len(kept) < MAX_TESTS:
            kept.setdefault(data, test)
    return tuple(kept.values())


def asserted(source: str, names: Mapping[str, Sequence[str]]) -> dict[str, list[Test]]:
    """Examples by function, from the asserts in a source, of functions with the parameters `names`.

    Asserts that say something else are passed over. Raises ProblemError for an unparsable source.
    """
    found: dict[str, list[Test]] = {name: [] for name in names}
    truths: dict[str, list[Test]] = {name: [] for name in names}
    for call, answer, is_truth in _claims(parse(source)):
        name = _called(call)
        if name not in names or any(keyword.arg is None for keyword in call.keywords):
            continue
        try:
            args = [literal(one) for one in call.args]
            kwargs = {str(one.arg): literal(one.value) for one in call.keywords}
            test = Test(args=bind(names[name], args, kwargs), answer=literal(answer))
        except (NotPlainError, ProblemError):
            continue
        (truths if is_truth else found)[name].append(test)
    for name, tests in found.items():
        # `assert f(x)` says True of a function that answers true or false, and little of another.
        if all(isinstance(test.answer, bool) for test in tests):
            tests += truths[name]
    return found


def called(source: str, names: Sequence[str]) -> str:
    """Which of `names` a source calls most often; empty for none."""
    calls = [_called(node) for node in ast.walk(parse(source)) if isinstance(node, ast.Call)]
    counted = Counter(name for name in calls if name in names)
    return counted.most_common(1)[0][0] if counted else ""


def _claims(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.expr, bool]]:
    """Calls with the answers that asserts claim they have, and whether only their truth is claimed."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assert):
            continue
        test = node.test
        if isinstance(test, ast.Call):
            yield test, ast.Constant(value=True), True
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            if isinstance(test.operand, ast.Call):
                yield test.operand, ast.Constant(value=False), True
        elif isinstance(test, ast.Compare) and len(test.ops) == 1:
            left, right = test.left, test.comparators[0]
            if not isinstance(test.ops[0], ast.Eq | ast.Is):
                continue
            if isinstance(left, ast.Call):
                yield left, right, False
            elif isinstance(right, ast.Call):
                yield right, left, False


def _called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):  # solution.f(...)
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
