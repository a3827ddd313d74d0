"""Moves a solution's variables into an environment's state, and tells which of them it changes."""

import ast
import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from synth.extract.words import root_of

# The state's name in a tool's body, and what a variable of that name is called that an expression binds.
STATE, OWN = "s", "s_"
# Methods that change what they are called on.
CHANGING = frozenset(
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
        self._is_bound = False
        """Whether an inner scope has a variable that is called like the state."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self._names:
            if self._is_bound and node.id == STATE:
                node.id = OWN
            return node
        holder = ast.Name(id=STATE, ctx=ast.Load())
        return ast.copy_location(ast.Attribute(value=holder, attr=node.id, ctx=node.ctx), node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
        taken = node.args
        own = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
        # Defaults are looked up outside.
        taken.defaults = [self.visit(value) for value in taken.defaults]
        taken.kw_defaults = [value and self.visit(value) for value in taken.kw_defaults]
        with self._within({one.arg for one in own if one is not None}):
            if self._is_bound:
                for one in own:
                    if one is not None and one.arg == STATE:
                        one.arg = OWN
            node.body = self.visit(node.body)
        return node

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
        # The first sequence is looked up outside.
        first = node.generators[0]
        items, first.iter = self.visit(first.iter), ast.Constant(value=None)
        with self._within(bound):
            self.generic_visit(node)
        first.iter = items
        return node

    @contextmanager
    def _within(self, bound: set[str]) -> Iterator[None]:
        """A scope that binds these."""
        hidden, outer = self._names & bound, self._is_bound
        self._names -= hidden
        self._is_bound = outer or STATE in bound
        yield
        self._names |= hidden
        self._is_bound = outer


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
                case ast.Call(func=ast.Attribute(attr=method, value=on)) if method in CHANGING:
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
