"""Moves a solution's variables into an environment's state, and tells which of them it changes."""

import ast
import copy
from collections.abc import Collection

from synth.extract.words import root_of

# The state's name in a tool's body.
STATE = "s"
# Methods that change what they are called on.
_CHANGING = frozenset(
    (
        *("add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert"),
        *("pop", "popitem", "popleft", "remove", "reverse", "rotate", "setdefault", "sort"),
        "update",
    )
)
_HEAP = frozenset(("heapify", "heappop", "heappush", "heappushpop", "heapreplace"))


class _ToState(ast.NodeTransformer):
    """`x` becomes `s.x` for the variables named, but for what an inner scope binds."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = set(names)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self._names:
            return node
        holder = ast.Name(id=STATE, ctx=ast.Load())
        return ast.copy_location(ast.Attribute(value=holder, attr=node.id, ctx=node.ctx), node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        return self._within(node, {argument.arg for argument in node.args.args})

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        return self._comprehension(node)

    def visit_SetComp(self, node: ast.SetComp) -> ast.expr:
        return self._comprehension(node)

    def visit_DictComp(self, node: ast.DictComp) -> ast.expr:
        return self._comprehension(node)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
        return self._comprehension(node)

    def _comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    ) -> ast.expr:
        bound = {
            inner.id
            for generator in node.generators
            for inner in ast.walk(generator.target)
            if isinstance(inner, ast.Name)
        }
        # The first sequence is looked up outside; a name that is bound inside cannot be meant there.
        return self._within(node, bound)

    def _within(self, node: ast.expr, bound: set[str]) -> ast.expr:
        hidden = self._names & bound
        self._names -= hidden
        self.generic_visit(node)
        self._names |= hidden
        return node


def to_state(node: ast.AST, names: Collection[str]) -> str:
    """The text of a statement or expression with variables in the state."""
    moved = _ToState(names).visit(copy.deepcopy(node))
    return ast.unparse(ast.fix_missing_locations(moved))


def changed_by(statements: list[ast.stmt]) -> list[str]:
    """Variables that statements bind or change, in order."""
    found: dict[str, None] = {}
    for statement in statements:
        for node in ast.walk(statement):
            match node:
                case ast.Assign(targets=targets):
                    for target in targets:
                        found |= dict.fromkeys(_bound(target))
                case ast.AugAssign(target=target) | ast.For(target=target):
                    found |= dict.fromkeys(_bound(target))
                case ast.Delete(targets=targets):
                    found |= dict.fromkeys(root_of(target) for target in targets)
                case ast.Call(func=ast.Attribute(attr=method, value=on)) if method in _CHANGING:
                    found[root_of(on)] = None
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[on, *_]) if (
                    name in _HEAP
                ):
                    found[root_of(on)] = None
    found.pop("", None)
    return list(found)


def names_in(node: ast.AST) -> set[str]:
    """Names that are read or bound anywhere in it."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _bound(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Tuple | ast.List):
        return [name for one in target.elts for name in _bound(one)]
    return [root_of(target)]
