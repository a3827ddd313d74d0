"""Names and docstrings of tools, from the statements and expressions they carry out."""

import ast
import keyword
import re

# Longest name of a tool.
MAX_NAME = 48
_COMPARED: dict[type[ast.AST], str] = {
    ast.Lt: "below",
    ast.LtE: "at_most",
    ast.Gt: "above",
    ast.GtE: "at_least",
    ast.Eq: "equal_to",
    ast.NotEq: "other_than",
    ast.In: "in",
    ast.NotIn: "not_in",
    ast.Is: "is",
    ast.IsNot: "is_not",
}
_CHANGED: dict[type[ast.AST], str] = {
    ast.Add: "add_to",
    ast.Sub: "take_from",
    ast.Mult: "multiply",
    ast.FloorDiv: "divide",
    ast.Div: "divide",
    ast.Mod: "reduce",
}
_JOINED: dict[type[ast.AST], str] = {
    ast.Add: "plus",
    ast.Sub: "minus",
    ast.Mult: "times",
    ast.FloorDiv: "over",
    ast.Div: "over",
    ast.Mod: "modulo",
}
_METHODS = {
    "append": "append_to",
    "appendleft": "prepend_to",
    "add": "add_to",
    "pop": "pop",
    "popleft": "pop_first_of",
    "remove": "remove_from",
    "discard": "remove_from",
    "insert": "insert_into",
    "extend": "extend",
    "sort": "sort",
    "reverse": "reverse",
    "clear": "clear",
    "update": "update",
    "heappush": "push_to",
    "heappop": "pop_least_of",
    "setdefault": "look_up_in",
}


def doing(statements: list[ast.stmt]) -> str:
    """A name for carrying out statements: what the first two of them do."""
    named = list(dict.fromkeys(word for one in statements if (word := _act(one))))
    return clean("_and_".join(named[:2]) or "go_on")


def asking(test: ast.expr) -> str:
    """A name for a condition."""
    return clean(f"is_{phrase(test)}")


def reading(value: ast.expr) -> str:
    """A name for a value that is told."""
    return clean(f"read_{phrase(value)}")


def clean(name: str) -> str:
    """`name` as an identifier of bounded length that ends with a whole word."""
    name = re.sub(r"\W+|_+", "_", name).strip("_").lower() or "go_on"
    if len(name) > MAX_NAME:
        name = name[:MAX_NAME].rpartition("_")[0] or name[:MAX_NAME]
    return f"{name}_" if keyword.iskeyword(name) else name


def explain(statements: list[ast.stmt]) -> str:
    """What statements do, in a sentence each."""
    return " ".join(_sentence(one) for one in statements)


def code(node: ast.AST) -> str:
    """An expression or statement on one line, as a docstring can hold it."""
    text = " ".join(ast.unparse(node).split())
    return text.replace("\\", "\\\\").replace('"""', "'''")


def phrase(node: ast.expr) -> str:
    """An expression in words."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=value):
            return "empty" if value in ("", ()) else str(value).lower()
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            return f"{phrase(left)}_{_COMPARED[type(operator)]}_{phrase(right)}"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"not_{phrase(operand)}"
        case ast.BoolOp(op=operator, values=values):
            joined = "_and_" if isinstance(operator, ast.And) else "_or_"
            return joined.join(phrase(value) for value in values)
        case ast.Subscript(value=value, slice=ast.Name() | ast.Constant() as at):
            return f"{phrase(value)}_at_{phrase(at)}"
        case ast.Subscript(value=value):
            return f"{phrase(value)}_entry"
        case ast.Attribute(value=value, attr=name):
            return f"{phrase(value)}_{name}"
        case ast.Call():
            return _called(node)
        case ast.BinOp(left=left, op=operator, right=right):
            return f"{phrase(left)}_{_JOINED.get(type(operator), 'with')}_{phrase(right)}"
        case _:
            return "value"


def _called(node: ast.Call) -> str:
    if len(node.args) != 1:
        return phrase(node.func)
    name = "size_of" if code(node.func) == "len" else phrase(node.func)
    return f"{name}_{phrase(node.args[0])}"


def root_of(node: ast.expr) -> str:
    """The variable that `a`, `a[i]`, `a.b` and `a[i].append` are of; empty for others."""
    while isinstance(node, ast.Subscript | ast.Attribute | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _act(node: ast.stmt) -> str:
    match node:
        case ast.Assign(value=ast.Call(func=ast.Attribute(attr=method, value=on))) if method in (
            "pop",
            "popleft",
        ):
            return f"{_METHODS[method]}_{phrase(on)}"
        case ast.Assign(value=ast.Call(func=ast.Name(id="heappop"), args=[on])):
            return f"pop_least_of_{phrase(on)}"
        case ast.Assign(targets=[ast.Tuple(elts=targets)]):
            return "set_" + "_".join(phrase(target) for target in targets[:3])
        case ast.Assign(targets=[target, *_]):
            return f"set_{phrase(target)}"
        case ast.AugAssign(target=target, op=operator):
            return f"{_CHANGED.get(type(operator), 'change')}_{phrase(target)}"
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=method, value=on))):
            of_heap = method in ("heappush", "heappop") and isinstance(node.value, ast.Call)
            target = node.value.args[0] if of_heap and node.value.args else on  # type: ignore[union-attr]
            return f"{_METHODS.get(method, method)}_{phrase(target)}"
        case ast.Expr(value=ast.Call(func=ast.Name(id=function), args=[on, *_])):
            return f"{_METHODS.get(function, function)}_{phrase(on)}"
        case ast.Delete(targets=[target, *_]):
            return f"remove_{phrase(target)}"
        case ast.For() | ast.While():
            inner = [act for one in node.body if (act := _act(one))]
            return inner[0] + "_throughout" if inner else "go_through"
        case ast.If():
            return _act(node.body[0])
        case _:
            return ""


def _sentence(node: ast.stmt) -> str:
    match node:
        case ast.Assign(targets=[target], value=value):
            return f"Set {code(target)} to {code(value)}."
        case ast.AugAssign(target=target, op=ast.Add(), value=value):
            return f"Add {code(value)} to {code(target)}."
        case ast.AugAssign(target=target, op=ast.Sub(), value=value):
            return f"Take {code(value)} from {code(target)}."
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="append", value=on), args=[item])):
            return f"Append {code(item)} to {code(on)}."
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="add", value=on), args=[item])):
            return f"Add {code(item)} to the set {code(on)}."
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="pop", value=on), args=[])):
            return f"Remove the last item of {code(on)}."
        case ast.Delete(targets=[target]):
            return f"Remove {code(target)}."
        case _:
            return f"Carry out: {code(node)}."
