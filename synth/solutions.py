"""Solutions of the wild as they are wanted: a function at the top, the same name and parameters in each."""

import ast

from synth.cutting import parse, renamed, unbound, with_imports
from synth.problem import ProblemError, parameters_of

# Solutions of a problem that are kept: agreement among more says nothing new.
MAX_SOLUTIONS = 8
# The class that some judges want a solution in.
_CLASS = "Solution"
_Function = ast.FunctionDef


def functions_in(tree: ast.Module) -> list[str]:
    """Functions at the top of a module, and methods of `class Solution` that may stand for one."""
    names = [node.name for node in tree.body if isinstance(node, _Function)]
    return list(dict.fromkeys([*names, *(node.name for node in _methods(tree))]))


def parameters_in(source: str, name: str) -> list[str]:
    """Names of the parameters of a function or method, without `self`. Raises ProblemError."""
    tree = parse(source)
    for node in tree.body:
        if isinstance(node, _Function) and node.name == name:
            return parameters_of(node)
    for node in _methods(tree):
        if node.name == name:
            names = parameters_of(node)
            return names if _is_static(node) else names[1:]
    raise ProblemError(f"it has no function {name!r}")


def standing_alone(source: str, name: str, parameters: list[str]) -> str:
    """`source` with the imports it counts on, and a function `name` of these parameters at its top.

    Raises ProblemError where that cannot be: other parameters in number, names that nothing defines.
    """
    source = with_imports(source.replace("\r\n", "\n"))
    lacking = unbound(source)
    if lacking:
        raise ProblemError(f"it uses {', '.join(sorted(lacking))}, which it does not define")
    found = parameters_in(source, name)
    if len(found) != len(parameters):
        raise ProblemError(
            f"{name} takes ({', '.join(found)}), not {len(parameters)} parameters as the first solution"
        )
    tree = parse(source)
    handed = ", ".join(parameters)
    is_function = any(isinstance(node, _Function) and node.name == name for node in tree.body)
    if is_function and found == parameters:
        return source.rstrip() + "\n"
    if is_function:
        call = f"_{name}"
        source = renamed(source, name, call)
    else:
        call = f"{_CLASS}().{name}"
    return f"{source.rstrip()}\n\n\ndef {name}({handed}):\n    return {call}({handed})\n"


def _methods(tree: ast.Module) -> list[ast.FunctionDef]:
    return [
        method
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == _CLASS
        for method in node.body
        if isinstance(method, _Function) and not method.name.startswith("__")
    ]


def _is_static(method: ast.FunctionDef) -> bool:
    return any(
        isinstance(one, ast.Name) and one.id == "staticmethod" for one in method.decorator_list
    )
