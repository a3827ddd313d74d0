"""What the variables of a function are: counters, numbers that are set once, names that are bound inside."""

import ast
from collections.abc import Collection

from envpool.env import ToolEnv
from synth.extract.state import names_in

# What a tool's body and a program call things of their own: no player can count by such a name.
_OURS = frozenset(("int", "json", "self", "s", "stepwise"))
_COUNTING = frozenset(("abs", "len", "max", "min"))


def bound_inside(node: ast.AST) -> set[str]:
    """Names that comprehensions and lambdas in it bind, which are theirs alone."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.comprehension):
            found |= names_in(inner.target)
        elif isinstance(inner, ast.Lambda):
            found |= {argument.arg for argument in inner.args.args}
    return found


def bound_at_top(tree: ast.Module) -> dict[str, str]:
    """Names that a module binds at its top, each with what it is bound to, as text."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = ast.dump(node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                of = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or of] = f"import {of}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"from {node.module} import {alias.name}"
        else:
            found |= dict.fromkeys(stored_in(node), ast.dump(node))
    return found


def is_value(bound_to: str) -> bool:
    """Whether that is a variable, of the words of `bound_at_top`."""
    return bound_to.startswith(("Assign", "AnnAssign", "AugAssign"))


def unfit_names(function: ast.FunctionDef, kept: Collection[str]) -> dict[str, str]:
    """Other words for variables and parameters whose names as attributes mean something else."""
    names = stored_in(function) | {argument.arg for argument in function.args.args}
    taken = sorted(name for name in names - set(kept) if name == "_" or hasattr(ToolEnv, name))
    return {name: "ignored" if name == "_" else f"{name}_value" for name in taken}


def calls(function: ast.FunctionDef, name: str) -> bool:
    """Whether a function calls one of that name."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(function)
    )


def can_end_without_value(function: ast.FunctionDef) -> bool:
    """Whether a function that gives a value somewhere can run past its last statement."""
    gives = any(isinstance(node, ast.Return) and node.value for node in ast.walk(function))
    return gives and not _ends(function.body)


def _ends(body: list[ast.stmt]) -> bool:
    match body[-1] if body else None:
        case ast.Return() | ast.Raise():
            return True
        case ast.If(body=first, orelse=other):
            return _ends(first) and _ends(other)
        case _:
            return False


def counters_of(function: ast.FunctionDef) -> dict[str, ast.Call]:
    """Variables that are bound by loops over ranges and by nothing else."""
    found: dict[str, ast.Call] = {}
    others = {argument.arg for argument in function.args.args} | bound_inside(function)
    for node in ast.walk(function):
        match node:
            case ast.For(
                target=ast.Name(id=name),
                iter=ast.Call(func=ast.Name(id="range"), keywords=[]) as over,
            ):
                found.setdefault(name, over)
            case ast.For(target=target):
                others |= names_in(target)
            case ast.Assign(targets=targets):
                for target in targets:
                    others |= stored_in(target)
            case ast.AugAssign(target=ast.Name(id=name)):
                others.add(name)
    return {name: over for name, over in found.items() if name not in others | _OURS}


def natural(function: ast.FunctionDef, counters: Collection[str]) -> set[str]:
    """Those of the counters that never go below 0."""
    found = set(counters)
    loops = [
        (node.target.id, node.iter.args)
        for node in ast.walk(function)
        if isinstance(node, ast.For)
        and isinstance(node.target, ast.Name)
        and isinstance(node.iter, ast.Call)
    ]
    while wrong := {name for name, over in loops if name in found and not _is_up(over, found)}:
        found -= wrong
    return found


def _is_up(over: list[ast.expr], natural: set[str]) -> bool:
    """Whether a range stays at 0 or above, as far as its bounds tell."""
    if len(over) < 3:
        return len(over) == 1 or _is_natural(over[0], natural)
    step = ast.unparse(over[2])
    if step.lstrip("-").isdigit():
        is_down = step.startswith("-")
        return _is_natural(over[1], natural, least=-1) if is_down else _is_natural(over[0], natural)
    return _is_natural(over[0], natural) and _is_natural(over[1], natural, least=-1)


def _is_natural(node: ast.expr, natural: set[str], least: int = 0) -> bool:
    """Whether a whole number is `least` or more for sure."""
    match node:
        case ast.Constant(value=int(value)):
            return value >= least
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value >= least
        case ast.Name(id=name):
            return name in natural
        case ast.Call(func=ast.Name(id="len")):
            return True
        case ast.BinOp(left=left, op=ast.Add() | ast.Mult() | ast.FloorDiv(), right=right):
            return _is_natural(left, natural) and _is_natural(right, natural)
        case _:
            return False


def stored_in(target: ast.AST) -> set[str]:
    """Names that are bound in it."""
    return {
        node.id
        for node in ast.walk(target)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def set_once(function: ast.FunctionDef, whole: frozenset[str]) -> set[str]:
    """Whole numbers that never change: parameters, and sizes and sums of such set at the top."""
    times: dict[str, int] = dict.fromkeys((a.arg for a in function.args.args), 1)
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] = times.get(node.id, 0) + 1
    found = {name for name in whole if times.get(name) == 1}
    for node in function.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if times[name] == 1:
                if _is_whole(value, found):
                    found.add(name)
    return found - _OURS


def _is_whole(node: ast.expr, known: set[str]) -> bool:
    match node:
        case ast.Constant(value=value):
            return type(value) is int
        case ast.Name(id=name):
            return name in known
        case ast.Call(func=ast.Name(id="len"), args=[_]):
            return True
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _COUNTING:
            return all(_is_whole(argument, known) for argument in arguments)
        case ast.BinOp(
            left=left,
            op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv() | ast.Mod(),
            right=right,
        ):
            return _is_whole(left, known) and _is_whole(right, known)
        case _:
            return False
