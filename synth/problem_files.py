"""Problems written as Python files, one each: `<concept>/<id>.py`.

    the module's docstring            the statement
    def solve(...)                    the original solution
    def solve_<how>(...)              an independent solution, with the same parameters
    def generate(rng, level)          a generator of inputs; optional
    def check(answer, **args)         where more than one answer is right; optional
    TESTS = [({args}, answer), ...]   examples, as literals; optional

Helpers, constants and imports may stand beside them: each solution, the generator and the checker become
texts of their own with what they reach.
"""

import ast
import inspect
import re
from pathlib import Path

from synth.cutting import cut, parse
from synth.literals import NotPlainError, few, literal
from synth.problem import CHECK, ENTRY, GENERATE, Problem, ProblemError, Test, parameters_of
from synth.reading import Unread

_ID = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_TESTS = "TESTS"


def read_file(path: Path, *, source: str = "", licence: str = "") -> Problem:
    """The problem in a file. Raises Unread; the text is never run."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unread("unreadable", f"{path}: {error}: it must be a file of UTF-8 text") from error
    if not _ID.fullmatch(path.stem):
        raise Unread(
            "bad id",
            f"{path}: {path.stem!r} is no id: name the file in lower-case words joined by _",
        )
    try:
        return _problem(text, path, source=source, licence=licence)
    except Unread:
        raise
    except ProblemError as error:
        raise Unread("unparsable", f"{path}:1: {error}: correct it") from error


def _problem(text: str, path: Path, *, source: str, licence: str) -> Problem:
    tree = parse(text)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    statement = inspect.cleandoc(ast.get_docstring(tree) or "")
    if not statement:
        raise Unread(
            "no statement",
            f"{path}:1: the module has no docstring: describe the problem in it",
        )
    if ENTRY not in functions:
        raise Unread("no solution", f"{path}:1: no `def {ENTRY}(...)`: write the solution as one")
    parameters = _parameters(functions[ENTRY], path)
    others = [name for name in functions if name.startswith(f"{ENTRY}_")]
    for name in others:
        found = _parameters(functions[name], path)
        if found != parameters:
            raise Unread(
                "other parameters",
                f"{path}:{functions[name].lineno}: {name} takes ({', '.join(found)}), {ENTRY} "
                f"({', '.join(parameters)}): give all solutions the same parameters",
            )
    return Problem(
        id=path.stem,
        statement=statement,
        solutions=(
            cut(text, tree, ENTRY),
            *(_solution(text, tree, functions[name], path) for name in others),
        ),
        tests=_tests(tree, functions[ENTRY], path),
        generator=_generator(text, tree, functions[GENERATE], path)
        if GENERATE in functions
        else "",
        checker=cut(text, tree, CHECK) if CHECK in functions else "",
        concept=path.absolute().parent.name,
        source=source,
        licence=licence,
        place=f"{path}:1",
    )


def _parameters(function: ast.FunctionDef, path: Path) -> list[str]:
    try:
        return parameters_of(function)
    except ProblemError as error:
        raise Unread("odd parameters", f"{path}:{function.lineno}: {error}") from error


def _solution(text: str, tree: ast.Module, function: ast.FunctionDef, path: Path) -> str:
    try:
        return cut(text, tree, function.name, rename=ENTRY)
    except ProblemError as error:
        raise Unread("not independent", f"{path}:{function.lineno}: {error}") from error


def _generator(text: str, tree: ast.Module, function: ast.FunctionDef, path: Path) -> str:
    if len(_parameters(function, path)) != 2:
        raise Unread(
            "odd parameters",
            f"{path}:{function.lineno}: {GENERATE} must take (rng, level)",
        )
    return cut(text, tree, GENERATE)


def _tests(tree: ast.Module, solve: ast.FunctionDef, path: Path) -> tuple[Test, ...]:
    """The examples; raises Unread for what is none."""
    node = _assigned(tree)
    if node is None:
        return ()
    cure = "write [({'name': value}, answer), ...]"
    if not isinstance(node, ast.List | ast.Tuple):
        raise Unread("bad test", f"{path}:{node.lineno}: {_TESTS} is no list: {cure}")
    names = parameters_of(solve)
    num_optional = len(solve.args.defaults)
    positional = [argument.arg for argument in solve.args.args]
    needed = set(positional[: len(positional) - num_optional]) | {
        argument.arg
        for argument, default in zip(solve.args.kwonlyargs, solve.args.kw_defaults, strict=True)
        if default is None
    }
    tests = []
    for one in node.elts:
        where = f"{path}:{one.lineno}"
        try:
            value = literal(one)
        except NotPlainError as error:
            raise Unread("bad test", f"{where}: a test has {error}: write it in JSON") from error
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], dict):
            raise Unread("bad test", f"{where}: a test is no pair of arguments and answer: {cure}")
        args, answer = value
        if not needed <= args.keys() <= set(names):
            raise Unread(
                "bad test",
                f"{where}: a test has the arguments ({', '.join(args)}), {ENTRY} takes "
                f"({', '.join(names)}): name them all",
            )
        tests.append(Test(args=args, answer=answer))
    return few(tests)


def _assigned(tree: ast.Module) -> ast.expr | None:
    """What `TESTS` is set to."""
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == _TESTS for target in targets):
            return node.value  # pyright: ignore[reportAttributeAccessIssue] - both have one
    return None
