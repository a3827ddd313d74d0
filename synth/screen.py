"""`screen`: what the text of untrusted code shows that it must not have, before anything of it is run.

The first of two layers. It keeps out what has no place in a pure computation: files, time, other processes,
the interpreter's own insides, and ways round the rules of environments. It is no proof, as names can be
made at run time: the sandbox is what isolates.
"""

import ast
import sys
from collections.abc import Iterator
from typing import Literal

from envpool import env as envs
from envpool import stepwise
from envpool.env import ToolEnv

__all__ = ["MODULES", "Role", "screen"]

Role = Literal["env", "solution", "program"]
"""An environment; a module whose function is called; one that reads standard input and prints."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What only computes.
MODULES = _words(
    "bisect collections copy dataclasses datetime decimal enum fractions functools heapq itertools json "
    "math msgspec operator random re statistics string textwrap typing __future__"
)
# Of `sys`, which solutions may import: reading, printing and limits.
SYS = frozenset({"stdin", "stdout", "stderr", "setrecursionlimit", "maxsize", "exit"})
# What an environment defines of ToolEnv's own.
DEFINES = frozenset(
    {"Config", "Answer", "sample", "setup", "statement", "reference", "check", "oracle"}
)

_BUILTINS = _words(
    "exec eval compile open globals locals vars breakpoint delattr help memoryview copyright credits "
    "license"
)
_STREAMS = _words("input print exit quit")
# They take the name of an attribute, which must stand there.
_BY_NAME = frozenset({"getattr", "setattr", "hasattr", "attrgetter", "methodcaller"})
# Attributes that lead to the interpreter, evaluate text, or differ from run to run.
_ATTRIBUTES = _words(
    "gi_frame gi_code gi_yieldfrom cr_frame cr_code ag_frame ag_code tb_frame tb_next f_back f_globals "
    "f_locals f_builtins f_code func_globals mro Formatter get_field vformat ForwardRef get_type_hints "
    "make_dataclass SystemRandom bltns"
)
# Bases of classes that are no environments.
_PLAIN = _words(
    "Struct Enum IntEnum StrEnum IntFlag Flag NamedTuple Generic Protocol object dict list tuple set int "
    "str float Exception ValueError"
)
_CLOCKS = frozenset({"now", "today", "utcnow"})
# Underscored, and documented all the same.
_OF_NAMEDTUPLE = frozenset({"_replace", "_asdict", "_fields", "_make"})
_DUNDERS = _words(
    "__init__ __post_init__ __lt__ __le__ __gt__ __ge__ __eq__ __ne__ __hash__ __len__ __iter__ __next__ "
    "__contains__ __getitem__ __setitem__ __delitem__ __str__ __repr__ __bool__ __add__ __radd__ "
    "__iadd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __floordiv__ __mod__ __pow__ __neg__ "
    "__abs__ __and__ __or__ __xor__ __invert__ __matmul__ __call__ __int__ __float__ __index__ "
    "__enter__ __exit__ __missing__ __slots__ __name__ __doc__ __future__ __all__"
)
# Other modules of the standard library, as attributes of those that may be imported.
_OTHERS = sys.stdlib_module_names - MODULES
_PRIVATE = frozenset(name for name in dir(ToolEnv) if name.startswith("_"))
_TAKEN = frozenset(name for name in dir(ToolEnv) if not name.startswith("__")) - DEFINES


def screen(source: str, *, role: Role = "env") -> str:
    """What is not allowed in a source, with its line and the cure; empty if nothing."""
    try:
        tree = ast.parse(source)
        for node, what in _Screen(role).look(tree):
            return f"line {getattr(node, 'lineno', 1)}: {what}"
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        return f"line {line or 1}: it cannot be parsed: {error}"
    return ""


class _Screen:
    """One pass over a source. `_found` gives what is wrong with a node itself."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._modules: set[str] = set()
        """Names that modules, and what was imported of `datetime`, go by here."""

    def look(self, tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._modules |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        top = {id(node) for node in tree.body}
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Import | ast.ImportFrom)
                and self._role == "env"
                and id(node) not in top
            ):
                yield node, "an import inside: move it to the top"
            if _last(node) in _BY_NAME and id(node) not in called:
                yield node, f"hands on {_last(node)}, which is to be called with a name only"
            for what in self._found(node):
                yield node, what

    def _found(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from self._import(alias.name)
        elif isinstance(node, ast.ImportFrom):
            yield from self._import_from(node)
        elif isinstance(node, ast.Name):
            yield from self._name(node.id)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.ClassDef):
            yield from self._class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if _is_dunder(node.name) and node.name not in _DUNDERS:
                yield f"defines {node.name}, which changes how Python itself treats it"
            annotated = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for annotation in (node.returns, *(a.annotation for a in annotated)):
                yield from self._annotation(annotation)
        elif isinstance(node, ast.AnnAssign):
            yield from self._annotation(node.annotation)

    def _import(self, name: str) -> Iterator[str]:
        root = name.partition(".")[0]
        if root == "sys" and self._role != "env":
            return
        if root == "envpool":
            yield "imports envpool: write `from envpool.env import ToolEnv, tool`"
        elif root not in MODULES:
            yield f"imports {name}: only modules that compute may be, such as {_some()}"

    def _import_from(self, node: ast.ImportFrom) -> Iterator[str]:
        module, names = node.module or "", [alias.name for alias in node.names]
        if node.level or "*" in names:
            yield "imports a sibling or *: name what you need of the standard library"
        elif module == "envpool.env":
            for name in names:
                if name not in envs.__all__:
                    yield f"imports {name} of envpool.env: there are {', '.join(envs.__all__)}"
        elif module == "envpool" and names == ["stepwise"]:
            return
        elif module == "sys" and self._role != "env":
            for name in names:
                if name not in SYS:
                    yield f"imports {name} of sys: only {', '.join(sorted(SYS))} may be"
        else:
            yield from self._import(module)
            for name in names:
                if name in _OTHERS | _ATTRIBUTES or name.startswith("_"):
                    yield f"imports {name} of {module}: it is no part of its interface, or not pure"

    def _name(self, name: str) -> Iterator[str]:
        if name in _BUILTINS or (_is_dunder(name) and name not in _DUNDERS):
            yield f"uses {name}, which has no place in a computation"
        elif name in _STREAMS and self._role != "program":
            yield (
                f"uses {name}: nobody reads or sees it here; return what is to be known, or say "
                '"kind": "stdin" of a program that reads standard input'
            )

    def _stepwise(self, name: str) -> Iterator[str]:
        if name not in stepwise.__all__:
            yield f"uses stepwise.{name}: there are {', '.join(stepwise.__all__)}"

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        name, root = node.attr, _root(node)
        if _is_dunder(name) and name not in _DUNDERS:
            yield f"reaches for .{name}, an inside of Python"
        elif name.startswith("_") and not _is_dunder(name):
            if root not in ("self", "cls") or not isinstance(node.value, ast.Name):
                if name not in _OF_NAMEDTUPLE:
                    yield f"reaches for .{name}, private to another object: name it without _"
            elif self._role == "env" and name in _PRIVATE:
                yield f"uses self.{name}, which is ToolEnv's own: choose another name"
        elif self._role == "env" and name in _TAKEN and not isinstance(node.ctx, ast.Load):
            yield f"sets .{name}, which is ToolEnv's own: choose another name"
        elif root == "stepwise" and isinstance(node.value, ast.Name):
            yield from self._stepwise(name)
        elif name in _ATTRIBUTES:
            yield f"reaches for .{name}, which leads out of a pure computation"
        elif root == "sys" and isinstance(node.value, ast.Name) and name not in SYS:
            yield f"uses sys.{name}: only {', '.join(sorted(SYS))} may be"
        elif root in self._modules and name in _OTHERS and root != "sys":
            yield f"reaches for .{name}, a module that may not be imported"
        elif root in self._modules and name in _CLOCKS:
            yield f"reads the clock by .{name}(): nothing may depend on when it is run"

    def _call(self, node: ast.Call) -> Iterator[str]:
        """Functions that take an attribute's name, and others that depend on chance."""
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if isinstance(node.func, ast.Attribute):
            name = node.func.attr
        if name in _BY_NAME:
            # attrgetter and methodcaller have no object before the name.
            places = node.args[1:2] if name.endswith("attr") else node.args
            given = [p.value if isinstance(p, ast.Constant) else None for p in places]
            if not given or not all(isinstance(one, str) for one in given):
                yield f"calls {name}() without a name that is written there"
            elif name == "setattr" and set(given) & _TAKEN:
                yield f"sets {given[0]}, which is ToolEnv's own: choose another name"
            elif any(part.startswith("_") for one in given for part in str(one).split(".")):
                yield f"calls {name}() with a private name"
        elif name == "id" and isinstance(node.func, ast.Name):
            yield "calls id(), which differs from run to run"

    def _class(self, node: ast.ClassDef) -> Iterator[str]:
        if any(keyword.arg == "metaclass" for keyword in node.keywords):
            yield f"class {node.name} has a metaclass: leave it out"
        if self._role != "env" or all(_last(base) in _PLAIN for base in node.bases):
            return
        for name in _defined(node):
            if name in _TAKEN:
                yield f"class {node.name} defines {name}, which is ToolEnv's own: choose another name"
            elif name == "__init__":
                yield f"class {node.name} defines __init__: begin the episode in setup()"

    def _annotation(self, annotation: ast.expr | None) -> Iterator[str]:
        """Annotations are evaluated also where they are text."""
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                try:
                    inner = ast.parse(node.value, mode="eval")
                except (SyntaxError, ValueError):
                    continue
                for part in ast.walk(inner):
                    if isinstance(part, ast.Call):
                        yield "an annotation calls something: write a type"
                    yield from self._found(part)


def _defined(node: ast.ClassDef) -> Iterator[str]:
    """Names that a class's body gives a value."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield part.name
        elif isinstance(part, ast.Assign | ast.AnnAssign | ast.AugAssign):
            for inner in ast.walk(part):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield inner.id


def _is_dunder(name: str) -> bool:
    return name.startswith("__")


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes begins with; empty where it begins with something else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _last(node: ast.AST) -> str:
    """The last name of a chain of attributes, or the name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _some() -> str:
    return "collections, heapq, itertools, math and re"
