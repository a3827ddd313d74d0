"""`compile_solution`: a solution's function becomes tools, and a program that calls them.

Control flow stays with the player, data and state go into the environment:

    straight run of statements   a tool that carries them out and tells what they changed
    condition on hidden data     a tool that answers true or false
    loop over data               a tool that goes on to the next item
    loop over a range            the player counts, from sizes that tools tell
    result                       a tool that tells it, at the end

The program is the solution again, with calls in place of these: it wins by construction.
"""

import ast
import copy
from collections.abc import Iterator

from synth.extract import words
from synth.extract.errors import NotExtractableError
from synth.extract.normal import Normaliser
from synth.extract.operation import Compiled, Operation
from synth.extract.scope import Scope
from synth.extract.state import changed_by, names_in, to_state
from synth.extract.trees import Rename, Replace, call_of, cursor_of, named, nothing
from synth.extract.variables import (
    bound_at_top,
    bound_inside,
    calls,
    can_end_without_value,
    counters_of,
    is_value,
    natural,
    set_once,
    stored_in,
    unfit_names,
)

# How many changed variables an operation tells.
MAX_TOLD = 4
_SIMPLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.Delete)


class _Compiler:
    def __init__(
        self, tree: ast.Module, entry: str, depth: int, whole: frozenset[str], is_text: bool
    ) -> None:
        self._functions = {
            node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        self._tree = tree
        self._module = bound_at_top(tree)
        self._entry = entry
        self._depth = depth
        self._whole = whole
        self._is_text = is_text
        self._operations: dict[str, Operation] = {}
        self._names: set[str] = set()
        self._taken: set[str] = set()
        self._helpers: dict[str, list[ast.stmt]] = {}
        self._scopes: dict[str, Scope] = {}
        self._reads: list[ast.stmt] = []

    def run(self) -> Compiled:
        if any(isinstance(node, ast.Global) for node in ast.walk(self._tree)):
            raise NotExtractableError("global", "what a function leaves there outlasts an episode")
        scope = self._open(self._functions[self._entry])
        body = scope.function.body
        start = 0
        while (
            start < len(body) and self._is_block(body[start], 0) and not self._inlined(body[start])
        ):
            start += 1
        setup = [to_state(node, self._names) for node in body[:start]]
        oracle: list[ast.stmt] = []
        first = body[start] if start < len(body) else None
        if isinstance(first, ast.For) and not self._is_counted(first, scope):
            setup.append(self._begin(first))
            oracle += self._top(scope, [first], begun=True)
            start += 1
        oracle += self._top(scope, body[start:])
        if not any(one.is_change for one in self._operations.values()):
            raise NotExtractableError(
                "nothing to do step by step", "no statement is carried out more than once"
            )
        return Compiled(
            operations=list(self._operations.values()),
            setup=setup,
            oracle=oracle,
            helpers=self._helpers,
        )

    # -- functions ----------------------------------------------------------------------------

    def _open(self, function: ast.FunctionDef, result: str = "") -> Scope:
        """Bring a function in form, and find out what its variables are."""
        normaliser = Normaliser(function)
        function = normaliser.run()
        arguments = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        # In the state these would look like something private, or like an environment's own.
        words_of = unfit_names(function, () if result else arguments)
        renamed = {name: normaliser.fresh(word) for name, word in words_of.items()}
        function = Rename(renamed).visit(function)
        if result and can_end_without_value(function):
            # So that what it left behind when it was played before is not taken for its result.
            function.body.append(ast.Return(value=ast.Constant(value=None)))
        bound = {renamed.get(one, one) for one in arguments}
        bound |= stored_in(function) - bound_inside(function)
        changed = set(changed_by(function.body)) - bound
        bound |= changed - self._module.keys()
        if any(is_value(self._module.get(name, "")) for name in changed):
            raise NotExtractableError("global", f"changes {', '.join(sorted(changed))}")
        # One state for all functions: what another calls so, also for counting, is renamed here.
        if taken := self._taken & bound:
            function = Rename({name: f"{function.name}_{name}" for name in taken}).visit(function)
            bound = (bound - taken) | {f"{function.name}_{name}" for name in taken}
        counters = counters_of(function)
        self._taken |= bound
        self._names |= bound - set(counters)
        whole = self._whole if not result else frozenset[str]()
        return Scope(
            function=function,
            counters=counters,
            natural=natural(function, counters),
            once=set_once(function, whole) - set(counters),
            result=result,
        )

    def _helper(self, name: str) -> Scope:
        """Compile a helper function, once; its result lies in a variable of its own."""
        if name not in self._scopes:
            result = f"{name}_result"
            scope = self._open(self._functions[name], result)
            self._names.add(result)
            self._taken.add(result)
            self._scopes[name] = scope
            self._helpers[name] = []  # so that one that calls itself is noticed
            program = self._top(scope, scope.function.body)
            self._helpers[name] = program or [ast.parse("return").body[0]]
        return self._scopes[name]

    def _inlined(self, node: ast.stmt) -> ast.Call | None:
        """The call of a helper with loops of its own that a statement consists of, or assigns."""
        match node:
            case (
                ast.Assign(value=ast.Call() as call)
                | ast.AugAssign(value=ast.Call() as call)
                | ast.Return(value=ast.Call() as call)
                | ast.Expr(value=ast.Call() as call)
            ) if isinstance(call.func, ast.Name):
                function = self._functions.get(call.func.id)
            case _:
                return None
        if function is None or function.name == self._entry or call.keywords:
            return None
        has_loop = any(isinstance(inner, ast.For | ast.While) for inner in ast.walk(function))
        plain = not (function.args.defaults or function.args.vararg or function.args.kwonlyargs)
        is_starred = any(isinstance(one, ast.Starred) for one in call.args)
        if not has_loop or not plain or is_starred or calls(function, function.name):
            return None
        return call

    # -- programs -----------------------------------------------------------------------------

    def _top(
        self, scope: Scope, statements: list[ast.stmt], *, begun: bool = False
    ) -> list[ast.stmt]:
        """The program for statements at the top of a function: what it needs to know is read before."""
        program: list[ast.stmt] = []
        for group in self._groups(statements, 0):
            outer, self._reads = self._reads, []
            lines = self._program(scope, group, 0, begun=begun)
            program += [*self._reads, *lines]
            self._reads = outer
        return program

    def _groups(self, statements: list[ast.stmt], level: int) -> Iterator[list[ast.stmt]]:
        """Runs of statements that are one operation, and the others one by one."""
        run: list[ast.stmt] = []
        for node in statements:
            if self._is_block(node, level) and not self._inlined(node):
                run.append(node)
                continue
            if run:
                yield run
            run = []
            yield [node]
        if run:
            yield run

    def _is_block(self, node: ast.stmt, level: int) -> bool:
        """Whether a statement is carried out in one go."""
        if isinstance(node, _SIMPLE):
            return True
        if not isinstance(node, ast.For | ast.While) or level < self._depth:
            return False
        return not any(isinstance(inner, ast.Return) for inner in ast.walk(node))

    def _program(
        self, scope: Scope, statements: list[ast.stmt], level: int, *, begun: bool = False
    ) -> list[ast.stmt]:
        program: list[ast.stmt] = []
        for group in self._groups(statements, level):
            first = group[0]
            if self._is_block(first, level) and not self._inlined(first):
                program += self._block(scope, group)
                continue
            match first:
                case ast.If():
                    program += self._if(scope, first, level)
                case ast.While():
                    test = self._condition(scope, first.test)
                    body = self._program(scope, first.body, level + 1)
                    orelse = self._program(scope, first.orelse, level)
                    program.append(ast.While(test=test, body=body or nothing(), orelse=orelse))
                case ast.For():
                    program += self._for(scope, first, level, begun=begun)
                case ast.Return():
                    program += self._return(scope, first)
                case ast.Break() | ast.Continue():
                    program.append(first)
                case ast.Pass():
                    pass
                case ast.Raise():
                    program.append(ast.parse("return").body[0])
                case _ if (call := self._inlined(first)) is not None:
                    program += self._call(scope, first, call)
                case _:
                    kind = type(first).__name__.lower()
                    raise NotExtractableError(kind, f"line {getattr(first, 'lineno', '?')}")
        return program

    def _if(self, scope: Scope, node: ast.If, level: int) -> list[ast.stmt]:
        test = self._condition(scope, node.test)
        body = self._program(scope, node.body, level)
        orelse = self._program(scope, node.orelse, level)
        return [ast.If(test=test, body=body or nothing(), orelse=orelse)]

    def _block(self, scope: Scope, statements: list[ast.stmt]) -> list[ast.stmt]:
        body = [to_state(node, self._names) for node in statements]
        told = [name for name in changed_by(statements) if name in self._names][:MAX_TOLD]
        names = "".join(f", {name!r}" for name in told)
        operation = self._operation(
            scope,
            statements,
            words.doing(statements),
            words.explain(statements),
            [*body, f"return stepwise.shown(s{names})"],
            "dict[str, Any]",
            is_change=True,
        )
        return [ast.Expr(value=call_of(operation))]

    def _condition(self, scope: Scope, test: ast.expr) -> ast.expr:
        if (own := self._own(scope, test)) is not None:
            return own
        operation = self._operation(
            scope,
            [test],
            words.asking(test),
            f"Whether {words.code(test)}.",
            [f"return bool({to_state(test, self._names)})"],
            "bool",
        )
        return ast.Compare(
            left=call_of(operation), ops=[ast.Eq()], comparators=[ast.Constant(value="true")]
        )

    def _for(
        self, scope: Scope, node: ast.For, level: int, *, begun: bool = False
    ) -> list[ast.stmt]:
        if self._is_counted(node, scope):
            assert isinstance(node.iter, ast.Call)
            bounds = [self._number(scope, argument) for argument in node.iter.args]
            body = self._program(scope, node.body, level + 1)
            orelse = self._program(scope, node.orelse, level)
            over = ast.Call(func=node.iter.func, args=bounds, keywords=[])
            return [ast.For(target=node.target, iter=over, body=body or nothing(), orelse=orelse)]
        cursor, item = cursor_of(node), words.phrase(named(node.target))
        moved = to_state(node.target, self._names)
        begin = [] if begun else self._begin_tool(scope, node)
        operation = self._operation(
            scope,
            [],
            words.clean(f"next_{item}"),
            f"Go on to the next of {words.code(node.iter)}: {words.code(node.target)}. "
            f"Tells it, or `none left`.",
            [
                f"if s.{cursor}.is_at_end:",
                "    return stepwise.NONE_LEFT",
                f"{moved} = item = s.{cursor}.next()",
                "return stepwise.show(item, is_record=True)",
            ],
            "Any",
        )
        test = ast.Compare(
            left=call_of(operation),
            ops=[ast.NotEq()],
            comparators=[ast.parse("stepwise.NONE_LEFT", mode="eval").body],
        )
        body = self._program(scope, node.body, level + 1)
        orelse = self._program(scope, node.orelse, level)
        return [*begin, ast.While(test=test, body=body or nothing(), orelse=orelse)]

    def _begin(self, node: ast.For) -> str:
        return f"s.{cursor_of(node)} = stepwise.Cursor({to_state(node.iter, self._names)})"

    def _begin_tool(self, scope: Scope, node: ast.For) -> list[ast.stmt]:
        operation = self._operation(
            scope,
            [node.iter],
            words.clean(f"begin_with_{words.phrase(node.iter)}"),
            f"Begin to go through {words.code(node.iter)}. Tells how many there are.",
            [self._begin(node), f"return len(s.{cursor_of(node)}.items)"],
            "int",
        )
        return [ast.Expr(value=call_of(operation))]

    def _return(self, scope: Scope, node: ast.Return) -> list[ast.stmt]:
        value = node.value or ast.Constant(value=None)
        if scope.result:
            kept = ast.Assign(targets=[ast.Name(id=scope.result, ctx=ast.Store())], value=value)
            return [*self._block(scope, [kept]), ast.parse("return").body[0]]
        if (call := self._inlined(node)) is not None:
            before, value = self._called(scope, call)
        else:
            before = []
        answer = self._own(scope, value)
        if answer is None:
            operation = self._operation(
                scope,
                [value],
                words.reading(value),
                f"Tell {words.code(value)}, as it is now.",
                [f"return stepwise.plain({to_state(value, self._names)})"],
                "Any",
            )
            told = call_of(operation)
            loads = ast.parse("json.loads(_)", mode="eval").body
            assert isinstance(loads, ast.Call)
            loads.args = [told]
            answer = told if self._is_text else loads
        template = 'yield "done", {"answer": _}'
        done = ast.parse(template).body[0]
        done = Replace("_", answer).visit(done)
        return [*before, done, ast.parse("return").body[0]]

    def _call(self, scope: Scope, node: ast.stmt, call: ast.Call) -> list[ast.stmt]:
        """A statement whose value a helper gives."""
        before, value = self._called(scope, call)
        if isinstance(node, ast.Expr):
            return before
        node = copy.deepcopy(node)
        assert isinstance(node, ast.Assign | ast.AugAssign)
        node.value = value
        return [*before, *self._block(scope, [node])]

    def _called(self, scope: Scope, call: ast.Call) -> tuple[list[ast.stmt], ast.expr]:
        """Hand a helper its arguments and let it play; its result is then in the state."""
        assert isinstance(call.func, ast.Name)
        name = call.func.id
        if name in self._helpers and not self._helpers[name]:
            raise NotExtractableError("recursion", name)
        helper = self._helper(name)
        parameters = [argument.arg for argument in helper.function.args.args]
        if len(parameters) != len(call.args):
            raise NotExtractableError("call with other arguments", ast.unparse(call))
        program: list[ast.stmt] = []
        if parameters:
            pairs = zip(parameters, call.args, strict=True)
            given: list[ast.stmt] = [
                ast.Assign(targets=[ast.Name(id=own, ctx=ast.Store())], value=value)
                for own, value in pairs
            ]
            body = [to_state(node, self._names) for node in given]
            names = "".join(f", {own!r}" for own in parameters[:MAX_TOLD])
            operation = self._operation(
                scope,
                given,
                words.clean(f"begin_{name}"),
                f"Begin {name}: {words.explain(given)}",
                [*body, f"return stepwise.shown(s{names})"],
                "dict[str, Any]",
                is_change=True,
            )
            program.append(ast.Expr(value=call_of(operation)))
        play = ast.parse(f"yield from _play_{name}()").body
        return [*program, *play], ast.Name(id=helper.result, ctx=ast.Load())

    # -- what the player works out by itself --------------------------------------------------

    def _own(self, scope: Scope, node: ast.expr) -> ast.expr | None:
        """An expression as the player evaluates it, or None where it takes hidden data."""
        match node:
            case ast.Constant():
                return node
            case ast.Name(id=name) if name in scope.counters:
                return node
            case ast.Name(id=name) if name in scope.once:
                self._tell(scope, name)
                return node
            case ast.BinOp(left=left, right=right):
                pair = self._own(scope, left), self._own(scope, right)
                if pair[0] is None or pair[1] is None:
                    return None
                return ast.BinOp(left=pair[0], op=node.op, right=pair[1])
            case ast.UnaryOp(operand=operand):
                own = self._own(scope, operand)
                return None if own is None else ast.UnaryOp(op=node.op, operand=own)
            case ast.Compare(left=left, comparators=others):
                parts = [self._own(scope, part) for part in (left, *others)]
                if any(part is None for part in parts):
                    return None
                kept = [part for part in parts if part is not None]
                return ast.Compare(left=kept[0], ops=node.ops, comparators=kept[1:])
            case ast.BoolOp(values=values):
                parts = [self._own(scope, part) for part in values]
                kept = [part for part in parts if part is not None]
                return ast.BoolOp(op=node.op, values=kept) if len(kept) == len(parts) else None
            case _:
                return None

    def _tell(self, scope: Scope, name: str) -> None:
        """Have a number read before the statement at the top that needs it."""
        if name in scope.known:
            return
        scope.known.add(name)
        read = self._told_number(scope, ast.Name(id=name, ctx=ast.Load()))
        self._reads.append(ast.Assign(targets=[ast.Name(id=name, ctx=ast.Store())], value=read))

    def _number(self, scope: Scope, node: ast.expr) -> ast.expr:
        """A whole number that the player works out, or is told where it cannot."""
        own = self._own(scope, node)
        return self._told_number(scope, node) if own is None else own

    def _told_number(self, scope: Scope, node: ast.expr) -> ast.expr:
        name = words.reading(node)
        match node:
            case ast.Call(func=ast.Name(id="len"), args=[of]):
                name = words.clean(f"count_{words.phrase(of)}")
        operation = self._operation(
            scope,
            [node],
            name,
            f"Tell {words.code(node)}.",
            [f"return {to_state(node, self._names)}"],
            "int",
        )
        return ast.Call(
            func=ast.Name(id="int", ctx=ast.Load()), args=[call_of(operation)], keywords=[]
        )

    def _is_counted(self, node: ast.For, scope: Scope) -> bool:
        return isinstance(node.target, ast.Name) and node.target.id in scope.counters

    # -- tools --------------------------------------------------------------------------------

    def _operation(
        self,
        scope: Scope,
        nodes: list[ast.stmt] | list[ast.expr],
        name: str,
        doc: str,
        body: list[str],
        returns: str,
        *,
        is_change: bool = False,
    ) -> Operation:
        """The tool that does this: one that is there already, or a new one."""
        bound = set(changed_by([n for n in nodes if isinstance(n, ast.stmt)]))
        used = {used for node in nodes for used in names_in(node)} - bound
        inner = {free for node in nodes for free in bound_inside(node)}
        wanted = used - inner
        counters = {one: over for one, over in scope.counters.items() if one in wanted}
        for known in self._operations.values():
            if known.body == body and list(known.counters) == list(counters):
                return known
        number, unique = 2, name
        while unique in self._operations or unique == "done":
            unique, number = f"{name}_{number}", number + 1
        operation = Operation(
            name=unique,
            doc=doc,
            body=body,
            counters=counters,
            natural=scope.natural & counters.keys(),
            returns=returns,
            is_change=is_change,
        )
        self._operations[unique] = operation
        return operation


def compile_solution(
    tree: ast.Module, entry: str, *, depth: int, whole: frozenset[str], is_text: bool
) -> Compiled:
    """Compile `entry` of a solution. Raises NotExtractableError.

    Loops nested deeper than `depth` are carried out in one go. `whole`: parameters that are whole numbers.
    """
    return _Compiler(tree, entry, depth, whole, is_text).run()
