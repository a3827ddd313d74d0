"""Writes what was compiled as the text of a module with one `ToolEnv`."""

import ast
import textwrap
from collections.abc import Sequence

from synth.extract.operation import Compiled, Operation
from synth.extract.words import code

_WIDTH = 96
HEAD = '''\
"""{title}

Compiled from a solution: its variables are the hidden state, its steps the tools.
"""

import json
from random import Random
from typing import Any

import msgspec

from envpool import stepwise
from envpool.env import Oracle
'''
_CLASS = '''\
STATEMENT = (
{statement}
)


class {config}(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hidden: the arguments of the solution."""

{fields}


class {name}(stepwise.Stepwise):
    """{title}"""

    Config = {config}
    Answer = {answer}
{sample}
    def setup(self, config: {config}) -> None:
        self._given = msgspec.structs.asdict(config)
        s = self.begin(self._given)
{setup}

    def statement(self) -> str:
        return STATEMENT

    def reference(self) -> {answer}:
        return stepwise.result_of({entry}, self._given)
'''
_SAMPLE = """
    @classmethod
    def sample(cls, rng: Random, level: int) -> dict[str, Any]:
        return generate(rng, level)
"""


def class_name(env: str) -> str:
    """`best_trade` is `BestTrade`."""
    return "".join(word.capitalize() for word in env.split("_"))


def config_name(env_class: str) -> str:
    """What the class of an environment's configurations is called."""
    return f"{env_class}Input"


def write(
    env: str,
    statement: str,
    solution: str,
    entry: str,
    compiled: Compiled,
    *,
    fields: dict[str, str],
    answer: str,
    generator: str = "",
) -> str:
    """The module's text.

    `fields`: types of the solution's parameters, as text; `answer`: that of its result; `generator`:
    source with `generate(rng, level)`.
    """
    name = class_name(env)
    title = "".join(letter for letter in " ".join(statement.split()) if letter.isprintable())
    title = textwrap.shorten(title.split(". ")[0].replace('"', "'").replace("\\", ""), 84)
    parts = [HEAD.format(title=title.rstrip(".") + "."), _plain(solution)]
    if generator:
        parts.append(_plain(generator))
    parts.append(
        _CLASS.format(
            statement=_text(statement),
            config=config_name(name),
            name=name,
            title=title.rstrip(".") + ".",
            fields="\n".join(f"    {key}: {kind}" for key, kind in fields.items()) or "    pass",
            answer=answer,
            sample=_SAMPLE if generator else "",
            setup=textwrap.indent("\n".join(compiled.setup) or "del s", " " * 8),
            entry=entry,
        )
    )
    parts += [_operation(one) for one in compiled.operations]
    parts.append(_program("oracle", "self", compiled.oracle, indent=4))
    parts += [
        "\n" + _program(f"_play_{one}", "", body, indent=0)
        for one, body in compiled.helpers.items()
    ]
    return "\n".join(parts)


def without_docstrings(tree: ast.Module) -> ast.Module:
    """A module's code without what has its place at the top of a file only, which is ours."""
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    ]
    return tree


def _plain(source: str) -> str:
    return "\n" + ast.unparse(without_docstrings(ast.parse(source))) + "\n\n"


def _text(statement: str) -> str:
    """A long text as string literals on lines of bounded length."""
    lines = textwrap.wrap(
        statement,
        _WIDTH - 12,
        drop_whitespace=False,
        replace_whitespace=False,
        break_on_hyphens=False,
        expand_tabs=False,
    )
    return "\n".join(f"    {line!r}" for line in lines) or "    ''"


def _operation(operation: Operation) -> str:
    parameters = "".join(f", {name}: int" for name in operation.counters)
    # Cut between two backslashes, a word would go on with an escape of another kind.
    doc = textwrap.fill(operation.doc, _WIDTH - 8, break_long_words=False)
    if operation.counters:
        ranges = [f"    {name}: {_counted(over)}" for name, over in operation.counters.items()]
        doc = "\n".join([doc, "", "Args:", *ranges])
    doc = f'"""{doc}' + ('\n"""' if "\n" in doc else '"""')
    checks = [
        f"stepwise.check_count({name})" for name in operation.counters if name in operation.natural
    ]
    lines = [doc, *checks, *(["s = self._now"] if _uses_state(operation) else []), *operation.body]
    head = f"@stepwise.operation\ndef {operation.name}(self{parameters}) -> {operation.returns}:"
    body = textwrap.indent("\n".join(lines), " " * 4)
    return textwrap.indent(f"{head}\n{body}\n", " " * 4)


def _uses_state(operation: Operation) -> bool:
    return any("s." in line or "(s" in line for line in operation.body)


def _counted(over: ast.Call) -> str:
    """What a counter goes through, in words."""
    texts = [code(argument) for argument in over.args]
    begin, end = ("0", texts[0]) if len(texts) == 1 else (texts[0], texts[1])
    step = f" in steps of {texts[2]}" if len(texts) == 3 else ""
    return f"A number that you count, from {begin} up to, and without, {end}{step}."


def _program(name: str, parameter: str, body: Sequence[ast.stmt], *, indent: int) -> str:
    """A generator function of these statements."""
    module = ast.fix_missing_locations(ast.Module(body=list(body), type_ignores=[]))
    lines = textwrap.indent(ast.unparse(module), " " * 4)
    return textwrap.indent(f"def {name}({parameter}) -> Oracle:\n{lines}\n", " " * indent)
