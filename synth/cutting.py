"""Texts cut out of a module, each one standing alone: what a function reaches, and no more.

Only the syntax tree and the symbol table are read. Nothing is executed, imported or compiled to code.
"""

import ast
import builtins
import symtable
from collections.abc import Iterable, Iterator, Mapping, Sequence

from synth.problem import ProblemError

_BUILTINS = frozenset(dir(builtins)) | {"__name__", "__file__", "__doc__"}

# Names that solutions of the wild use without an import, since their judge had it: module, or a name in one.
_JUDGES_IMPORTS: Mapping[str, str] = {
    **{
        name: f"import {name}"
        for name in (
            "bisect", "collections", "copy", "functools", "heapq", "itertools", "math", "operator",
            "random", "re", "string", "sys", "typing",
        )
    },
    **{
        name: f"from typing import {name}"
        for name in ("Any", "Callable", "Deque", "Dict", "Iterable", "List", "Optional", "Set",
                     "Tuple", "Union")
    },
    **{
        name: f"from collections import {name}"
        for name in ("Counter", "OrderedDict", "defaultdict", "deque")
    },
    **{name: f"from functools import {name}" for name in ("cache", "cmp_to_key", "lru_cache", "reduce")},
    **{
        name: f"from heapq import {name}"
        for name in ("heapify", "heappop", "heappush", "heappushpop", "heapreplace")
    },
    **{
        name: f"from itertools import {name}"
        for name in ("accumulate", "chain", "combinations", "groupby", "permutations", "product")
    },
    **{name: f"from bisect import {name}" for name in ("bisect_left", "bisect_right", "insort")},
    **{name: f"from math import {name}" for name in ("ceil", "comb", "floor", "gcd", "inf", "sqrt")},
}  # fmt: skip


def parse(source: str) -> ast.Module:
    """The syntax tree of a source; raises ProblemError."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        at = f" in its line {line}" if line else ""
        raise ProblemError(f"it is no Python 3{at}: {in_words(error)}") from error


def in_words(error: BaseException) -> str:
    """What a parser says, on one line."""
    text = getattr(error, "msg", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def cut(source: str, tree: ast.Module, name: str, *, rename: str = "") -> str:
    """The statements of a module that its function `name` reaches, in order, as a module of their own.

    `rename` is what the function is called there. Raises ProblemError when something has that name.
    """
    texts = _texts(source, tree)
    bound = [_bound(node) for node in tree.body]
    used = [_used(text) for text in texts]
    wanted, open_names = set[int](), [name]
    while open_names:
        name_wanted = open_names.pop()
        for index, names in enumerate(bound):
            if name_wanted in names and index not in wanted:
                wanted.add(index)
                open_names += used[index]
    reached = set().union(*(bound[index] for index in wanted))
    for index, node in enumerate(tree.body):
        is_future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        # Such as sys.setrecursionlimit(10**6), where sys is imported anyway.
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if is_future or is_star or (is_call and used[index] - _BUILTINS <= reached):
            wanted.add(index)
    if rename and rename != name and rename in reached:
        raise ProblemError(
            f"{name} uses {rename}, so that it is no independent solution: give it helpers of its own"
        )
    text = "\n\n".join(texts[index] for index in sorted(wanted)) + "\n"
    return renamed(text, name, rename) if rename and rename != name else text


def renamed(source: str, old: str, new: str) -> str:
    """`source` with every variable, function and class `old` called `new`; raises ProblemError."""
    tree = parse(source)
    lines = [line.encode() for line in source.split("\n")]
    places = sorted(set(_places(tree, old, lines)), reverse=True)
    for line, column in places:
        text = lines[line - 1]
        end = column + len(old.encode())
        assert text[column:end] == old.encode(), f"line {line} has {old!r} elsewhere"
        lines[line - 1] = text[:column] + new.encode() + text[end:]
    return b"\n".join(lines).decode()


def unbound(source: str) -> set[str]:
    """Names that a module uses, and neither defines nor imports; none where it imports `*`."""
    tree = parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            return set()
    table = _table(source)
    bound = {symbol.get_name() for symbol in table.get_symbols() if _is_bound(symbol)}
    bound |= {name for inner in _inner(table) for name in _declared(inner)}
    return _used(source) - bound - _BUILTINS


def with_imports(source: str) -> str:
    """`source` after the imports that judges make for their solvers, where it lacks them."""
    tree = parse(source)
    lacking = sorted({_JUDGES_IMPORTS[name] for name in unbound(source) & _JUDGES_IMPORTS.keys()})
    if not lacking:
        return source
    starts = [_first_line(node) for node in tree.body if not _is_opening(node)]
    lines = source.split("\n")
    at = (starts[0] - 1) if starts else len(lines)
    return "\n".join([*lines[:at], *lacking, *lines[at:]])


def _is_opening(node: ast.stmt) -> bool:
    """A docstring or an import of __future__, before which nothing may stand."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return isinstance(node.value.value, str)
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _texts(source: str, tree: ast.Module) -> list[str]:
    """The text of each statement, with its decorators and the comments inside it."""
    lines = source.split("\n")
    spans = [(_first_line(node), node.end_lineno or node.lineno) for node in tree.body]
    ends = [end for _, end in spans]
    texts = []
    for index, (node, (start, end)) in enumerate(zip(tree.body, spans, strict=True)):
        shares_line = (index > 0 and ends[index - 1] == start) or any(
            later == end for later, _ in spans[index + 1 :]
        )
        # Two statements on a line are written anew.
        texts.append(ast.unparse(node) if shares_line else "\n".join(lines[start - 1 : end]))
    return texts


def _first_line(node: ast.stmt) -> int:
    decorators: Sequence[ast.expr] = getattr(node, "decorator_list", ())
    return min([node.lineno, *(one.lineno for one in decorators)])


def _bound(node: ast.stmt) -> set[str]:
    """Names of the module that a statement gives a value."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names: set[str] = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load):
            names.add(one.id)
        elif isinstance(one, ast.alias):
            names.add((one.asname or one.name).split(".")[0])
        elif isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(one.name)
    return names


def _used(text: str) -> set[str]:
    """Names of the module that a piece of it refers to, whether it gives them a value or not."""
    table = _table(text)
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    for inner in _inner(table):
        names |= {symbol.get_name() for symbol in inner.get_symbols() if symbol.is_global()}
    return names


def _declared(table: symtable.SymbolTable) -> set[str]:
    """Names of the module that a function gives a value, by `global`."""
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_declared_global() and symbol.is_assigned()
    }


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _table(text: str) -> symtable.SymbolTable:
    try:
        return symtable.symtable(text, "<solution>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProblemError(f"it is no Python 3: {in_words(error)}") from error


def _inner(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    for child in table.get_children():
        yield child
        yield from _inner(child)


def _places(tree: ast.Module, name: str, lines: Sequence[bytes]) -> Iterable[tuple[int, int]]:
    """Line (from 1) and column (bytes) of each place where a variable's or definition's name stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name:
            yield node.lineno, node.col_offset
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                found = lines[node.lineno - 1].find(name.encode(), node.col_offset + 4)
                yield node.lineno, found
        elif isinstance(node, ast.Global | ast.Nonlocal) and name in node.names:
            raise ProblemError(f"{name} is declared global: write it without")
