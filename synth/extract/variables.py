"""What the variables of a function are: counters, numbers that are set once, names that are bound inside."""

import ast

from synth.extract.state import names_in

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


def calls(function: ast.FunctionDef, name: str) -> bool:
    """Whether a function calls one of that name."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
        for node in ast.walk(function)
    )


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
    return {name: over for name, over in found.items() if name not in others}


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
    return found


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
