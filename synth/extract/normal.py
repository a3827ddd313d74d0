"""Brings a solution's function into the few forms that the compiler knows.

Annotations and assertions go, sums and lists that are built in one expression become loops, and so does
`enumerate`: what a player shall do step by step must be statements.
"""

import ast
import copy
from collections.abc import Iterator

from synth.extract.errors import NotExtractableError
from synth.extract.state import CHANGING

# Statements that an environment cannot carry out one by one, by the reason a report counts.
_REFUSED: dict[type[ast.AST], str] = {
    ast.AsyncFunctionDef: "async",
    ast.AsyncFor: "async",
    ast.AsyncWith: "async",
    ast.Await: "async",
    ast.ClassDef: "class in a function",
    ast.FunctionDef: "nested function",
    ast.Global: "global",
    ast.Match: "match",
    ast.Nonlocal: "nested function",
    ast.Try: "try",
    ast.With: "with",
    ast.Yield: "generator",
    ast.YieldFrom: "generator",
    ast.NamedExpr: "assignment in an expression",
}
_UNORDERED = frozenset(("Counter", "OrderedDict", "defaultdict", "dict", "frozenset", "set"))
_REDUCERS = ("sum", "max", "min", "any", "all", "list", "set", "sorted", "len", "tuple")


def parse(text: str) -> ast.stmt:
    """One statement."""
    return ast.parse(text).body[0]


class Normaliser:
    """Rewrites the body of one function."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = copy.deepcopy(function)
        self._taken = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        self._taken |= {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}

    def run(self) -> ast.FunctionDef:
        """The function in normal form. Raises NotExtractableError."""
        for node in ast.walk(self._function):
            if node is not self._function and (reason := _REFUSED.get(type(node))):
                raise NotExtractableError(reason, f"line {getattr(node, 'lineno', '?')}")
        body = self._function.body
        if ast.get_docstring(self._function) is not None:
            body = body[1:]
        self._function.body = self._body(body)
        return ast.fix_missing_locations(self._function)

    def fresh(self, word: str) -> str:
        """A name that the function does not use."""
        name, number = word, 2
        while name in self._taken:
            name, number = f"{word}_{number}", number + 1
        self._taken.add(name)
        return name

    def _body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        return [new for old in statements for new in self._statement(old)]

    def _statement(self, node: ast.stmt) -> Iterator[ast.stmt]:
        match node:
            case (
                ast.Pass()
                | ast.Assert()
                | ast.Expr(value=ast.Constant())
                | ast.AnnAssign(value=None)
            ):
                return
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield from self._statement(ast.Assign(targets=[target], value=value))
            case ast.Import() | ast.ImportFrom():
                raise NotExtractableError("import in a function", f"line {node.lineno}")
            case ast.If() | ast.While() | ast.For():
                yield from self._compound(node)
            case ast.Return(value=ast.expr() as value):
                before, node.value = self._reduced(value)
                yield from before
                yield node
            case ast.Assign(targets=[ast.Tuple() as targets], value=ast.Tuple() as values) if (
                _are_apart(targets, values)
            ):
                for target, value in zip(targets.elts, values.elts, strict=True):
                    yield from self._statement(ast.Assign(targets=[target], value=value))
            case ast.Assign(targets=[ast.Name() as target], value=ast.ListComp() as made) if (
                _is_of_data(made)
            ):
                yield from self._built(target.id, made)
            case ast.Assign() | ast.AugAssign():
                before, node.value = self._reduced(node.value)
                yield from before
                yield node
            case _:
                yield node

    def _compound(self, node: ast.If | ast.While | ast.For) -> Iterator[ast.stmt]:
        if isinstance(node, ast.For):
            yield from self._for(node)
            return
        node.body = self._body(node.body) or [ast.Pass()]
        node.orelse = self._body(node.orelse)
        before, node.test = self._reduced(node.test)
        if before and isinstance(node, ast.While):
            yield from self._while(node, before)
        else:
            yield from before
            yield node

    def _while(self, node: ast.While, before: list[ast.stmt]) -> Iterator[ast.stmt]:
        """The condition takes statements, which run each time."""
        if node.orelse:
            raise NotExtractableError("while with else", f"line {node.lineno}")
        leave = ast.If(
            test=ast.UnaryOp(op=ast.Not(), operand=node.test), body=[ast.Break()], orelse=[]
        )
        if any(isinstance(inner, ast.Continue) for inner in ast.walk(node)):
            raise NotExtractableError("condition with a loop in it", f"line {node.lineno}")
        node.test = ast.Constant(value=True)
        node.body = [*before, leave, *node.body]
        yield node

    def _for(self, node: ast.For) -> Iterator[ast.stmt]:
        node.body = self._body(node.body) or [ast.Pass()]
        node.orelse = self._body(node.orelse)
        match node:
            case ast.For(
                target=ast.Tuple(elts=[ast.Name() as index, item]),
                iter=ast.Call(
                    func=ast.Name(id="enumerate"), args=[ast.Name() as items], keywords=[]
                ),
            ) if items.id not in self._unordered():
                node.target = ast.Name(id=index.id, ctx=ast.Store())
                node.iter = _expression(f"range(len({items.id}))")
                take = ast.Assign(targets=[item], value=_expression(f"{items.id}[{index.id}]"))
                node.body = [take, *node.body]
            case _:
                pass
        yield node

    def _reduced(self, value: ast.expr) -> tuple[list[ast.stmt], ast.expr]:
        """Statements that build what `value` reduces in one go, and what is left of it."""
        before: list[ast.stmt] = []
        taken = self
        if any(_changes(node) for node in ast.walk(value)):
            return before, value  # what is changed first would be looked at first

        class Take(ast.NodeTransformer):
            def visit_Lambda(self, node: ast.Lambda) -> ast.expr:
                return node

            def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
                return node  # one of its arms may not be evaluated

            def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
                return node

            def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.expr:
                return node

            def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
                return node

            def visit_Call(self, node: ast.Call) -> ast.expr:
                match node:
                    case ast.Call(
                        func=ast.Name(id=str(name)),
                        args=[ast.GeneratorExp() | ast.ListComp() as made],
                        keywords=[],
                    ) if name in _REDUCERS and _is_of_data(made):
                        statements, result = taken._reduce(name, made)
                        before.extend(statements)
                        return result
                self.generic_visit(node)
                return node

        return before, Take().visit(value)

    def _reduce(
        self, name: str, made: ast.GeneratorExp | ast.ListComp
    ) -> tuple[list[ast.stmt], ast.expr]:
        """A loop in place of a reduction."""
        if name in ("sum", "any", "all"):
            start = {"sum": "0", "any": "False", "all": "True"}[name]
            total = self.fresh({"sum": "total", "any": "is_any", "all": "is_all"}[name])
            step = {
                "sum": f"{total} += _",
                "any": f"if _:\n    {total} = True\n    break",
                "all": f"if not _:\n    {total} = False\n    break",
            }[name]
            loop = self._looped(made, parse(step))
            return [parse(f"{total} = {start}"), *loop], ast.Name(id=total, ctx=ast.Load())
        items = self.fresh("items")
        built = list(self._built(items, made))
        return built, _expression(items if name == "list" else f"{name}({items})")

    def _built(self, name: str, made: ast.ListComp | ast.GeneratorExp) -> Iterator[ast.stmt]:
        """A list that grows item by item."""
        yield parse(f"{name} = []")
        yield from self._looped(made, parse(f"{name}.append(_)"))

    def _looped(self, made: ast.GeneratorExp | ast.ListComp, step: ast.stmt) -> list[ast.stmt]:
        """The loops of a comprehension around `step`, in which `_` stands for its item."""
        renamed: dict[str, str] = {}
        made = copy.deepcopy(made)
        for generator in made.generators:
            for node in ast.walk(generator.target):
                # What a comprehension binds is its own.
                if isinstance(node, ast.Name) and node.id not in renamed:
                    is_free = node.id not in self._assigned()
                    renamed[node.id] = node.id if is_free else self.fresh(node.id)
        for node in ast.walk(made):
            if isinstance(node, ast.Name):
                node.id = renamed.get(node.id, node.id)
        item = made.elt

        class Fill(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                return item if node.id == "_" else node

        body: list[ast.stmt] = [Fill().visit(step)]
        if isinstance(step, ast.If) and len(made.generators) > 1:
            raise NotExtractableError("comprehension of several loops", ast.unparse(made))
        for generator in reversed(made.generators):
            for test in reversed(generator.ifs):
                body = [ast.If(test=test, body=body, orelse=[])]
            loop = ast.For(target=generator.target, iter=generator.iter, body=body, orelse=[])
            body = list(self._for(ast.fix_missing_locations(ast.copy_location(loop, made))))
        return body

    def _unordered(self) -> set[str]:
        """Names that the function binds to what has no positions: tables and sets."""
        return {
            target.id
            for node in ast.walk(self._function)
            if isinstance(node, ast.Assign) and _is_unordered(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def _assigned(self) -> set[str]:
        """Names that the function binds outside comprehensions."""
        found = {argument.arg for argument in self._function.args.args}
        for node in ast.walk(self._function):
            if isinstance(node, ast.Assign | ast.AugAssign | ast.For | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    found |= {one.id for one in ast.walk(target) if isinstance(one, ast.Name)}
        return found


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _changes(node: ast.AST) -> bool:
    """Whether it changes something as it is evaluated."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CHANGING
    )


def _is_unordered(value: ast.expr) -> bool:
    match value:
        case ast.Dict() | ast.Set() | ast.DictComp() | ast.SetComp():
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _UNORDERED
        case _:
            return False


def _is_of_data(made: ast.ListComp | ast.GeneratorExp) -> bool:
    """Whether a comprehension looks at data, rather than laying out an empty table."""
    if any(generator.is_async for generator in made.generators):
        raise NotExtractableError("async", ast.unparse(made))
    bound = {
        node.id
        for generator in made.generators
        for node in ast.walk(generator.target)
        if isinstance(node, ast.Name)
    }
    is_layout = all(_is_range(generator.iter) for generator in made.generators)
    looks = any(isinstance(node, ast.Name) and node.id in bound for node in ast.walk(made.elt))
    tests = any(generator.ifs for generator in made.generators)
    return looks or tests or not is_layout


def _is_range(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"
    )


def _are_apart(targets: ast.Tuple, values: ast.Tuple) -> bool:
    """Whether assigning them one after the other is the same as all at once."""
    if len(targets.elts) != len(values.elts) or any(
        not isinstance(target, ast.Name) for target in targets.elts
    ):
        return False
    bound = {target.id for target in targets.elts if isinstance(target, ast.Name)}
    used = {node.id for node in ast.walk(values) if isinstance(node, ast.Name)}
    starred = any(isinstance(value, ast.Starred) for value in values.elts)
    return not bound & used and not starred
