"""Small pieces of syntax trees that programs are made of."""

import ast
from collections.abc import Mapping

from synth.extract import words
from synth.extract.operation import Operation


class Rename(ast.NodeTransformer):
    """Gives variables and parameters other names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self._names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.arg = self._names.get(node.arg, node.arg)
        return node


class Replace(ast.NodeTransformer):
    """Puts an expression in place of a variable."""

    def __init__(self, name: str, value: ast.expr) -> None:
        self._name, self._value = name, value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._value if node.id == self._name else node


def call_of(operation: Operation) -> ast.expr:
    """Yields the call of a tool."""
    arguments = ast.Dict(
        keys=[ast.Constant(value=name) for name in operation.counters],
        values=[ast.Name(id=name, ctx=ast.Load()) for name in operation.counters],
    )
    pair = ast.Tuple(elts=[ast.Constant(value=operation.name), arguments], ctx=ast.Load())
    return ast.Yield(value=pair)


def nothing() -> list[ast.stmt]:
    """A body that does nothing."""
    return [ast.Pass()]


def cursor_of(node: ast.For) -> str:
    """Name of the variable that keeps a loop's place."""
    return f"{words.clean(words.phrase(named(node.target)))}_cursor_{node.lineno}"


def named(target: ast.expr) -> ast.expr:
    """A target as one name."""
    if isinstance(target, ast.Tuple):
        return ast.Name(id="_".join(words.phrase(one) for one in target.elts), ctx=ast.Load())
    return target
