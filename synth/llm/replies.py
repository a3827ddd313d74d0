"""What a reply must be: fenced blocks with names, and in them a module or configurations as asked for.

It is strict, because what passes here costs a place in the sandbox, and what does not can go back to the
model with a message that says what was wrong. Sources are parsed, never run; what they may not use is
looked at elsewhere.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Literal

import msgspec

from envpool.folder import env_id_of
from envpool.task import Config
from synth.problem import Problem, ProblemError, entry_of, parameters_of
from synth.records import Draft

# A longer module or list of configurations is refused unread.
MAX_SOURCE = 100_000
# Fewer different configurations are too few to choose from.
MIN_CONFIGS = 3
# Tools besides `done`.
MIN_TOOLS = 3

_METHODS = ("sample", "setup", "statement", "reference", "oracle")
_FENCE = re.compile(r"^```(\w+) (\w+)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_ANY_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)
# How replies begin that decline the work; looked for only where a reply has no fenced block.
_DECLINED = re.compile(
    r"\s*(?:i['\u2019]?m (?:really |very )?sorry|sorry\b|i (?:can(?:no|['\u2019])t|am unable|won['\u2019]t|must decline)|"
    r"as an ai\b)",
    re.IGNORECASE,
)


class Block(StrEnum):
    """Blocks that are asked for, as they open after the three backticks."""

    ENVIRONMENT = "python environment"
    CONFIGURATIONS = "json configurations"
    SOLVER = "python solver"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What a model said, and what it took."""

    text: str
    finish: str = "stop"
    """Why it ended: `stop`, `length`, `content_filter`, ..."""
    refusal: str = ""
    """Set where the model declined by the field that endpoints have for it."""
    prompt_tokens: int = 0
    reply_tokens: int = 0


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """An environment as a reply has it."""

    env: str
    source: str
    configs: tuple[Config, ...]


class RefusedReply(Exception):
    """A reply that cannot be used. `reason` is counted, the text goes back to the model."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.reason = reason
        self.text = text

    def __str__(self) -> str:
        return self.text

    @property
    def is_repairable(self) -> bool:
        """Whether asking again with the text can help: not where the model declines."""
        return self.reason != "refusal"


def fields_of(problem: Problem) -> list[str]:
    """Fields of an environment's configuration: the parameters of the original solution.

    Raises ProblemError for a solution that is none.
    """
    if problem.kind == "stdin":
        return ["stdin"]
    return parameters_of(entry_of(problem.solutions[0], problem.entry))


def read_environment(reply: Reply, problem: Problem) -> Written:
    """The environment and configurations of a reply. Raises RefusedReply."""
    found = _blocks(reply, (Block.ENVIRONMENT, Block.CONFIGURATIONS))
    source = found[Block.ENVIRONMENT]
    fields = fields_of(problem)
    name = _environment_class(_parse(source, "the environment"), fields)
    configs = _configurations(found[Block.CONFIGURATIONS], fields)
    return Written(env=env_id_of(name), source=source, configs=configs)


def read_solver(reply: Reply, problem: Problem) -> str:
    """The source of a solver. Raises RefusedReply."""
    source = _blocks(reply, (Block.SOLVER,))[Block.SOLVER]
    _parse(source, "the solver")
    if problem.kind == "stdin":
        return source
    try:
        parameters = parameters_of(entry_of(source, problem.entry))
    except ProblemError as error:
        raise RefusedReply("entry", f"{error}: define `{problem.entry}` at the top level") from None
    wanted = fields_of(problem)
    if parameters != wanted:
        raise RefusedReply(
            "entry",
            f"{problem.entry} takes ({', '.join(parameters)}): it must take ({', '.join(wanted)})",
        )
    return source


def spoken(reply: Reply) -> str:
    """Text of a reply without a model's thoughts, which some endpoints leave in it, fences and all."""
    return reply.text.rpartition("</think>")[2].replace("\r\n", "\n")


def draft_of(
    problem: Problem,
    written: Written,
    solvers: Iterable[str],
    *,
    origin: Literal["llm", "recorded"],
    notes: tuple[str, ...],
) -> Draft:
    """The draft of an environment: the original solution is first among its solutions."""
    return Draft(
        env=written.env,
        problem=problem.id,
        concept=problem.concept,
        origin=origin,
        source=written.source,
        configs=written.configs,
        solutions=tuple(dict.fromkeys((*problem.solutions, *solvers))),
        entry=problem.entry,
        checker=problem.checker,
        notes=notes,
    )


def _blocks(reply: Reply, wanted: tuple[Block, ...]) -> dict[Block, str]:
    """Text of each block wanted, which must be there once."""
    text = spoken(reply)
    has_none = _ANY_FENCE.search(text) is None
    if reply.refusal or reply.finish == "content_filter" or (has_none and _DECLINED.match(text)):
        said = reply.refusal or text.strip()
        raise RefusedReply("refusal", f"the model declined: {said[:200] or reply.finish}")
    if reply.finish == "length":
        raise RefusedReply(
            "truncated", "The reply was cut off at the token limit: write a shorter one, in full."
        )
    found: dict[str, list[str]] = {}
    for kind, label, body in _FENCE.findall(text):
        found.setdefault(f"{kind} {label}", []).append(body)
    for block in wanted:
        count = len(found.get(block, ()))
        if count != 1:
            many = "is missing" if not count else f"is there {count} times"
            raise RefusedReply(
                "format",
                f'the block "```{block}" {many}: open it by exactly that line, close it by "```", once',
            )
        if len(found[block][0]) > MAX_SOURCE:
            raise RefusedReply("format", f'the block "```{block}" has over {MAX_SOURCE} characters')
    return {block: found[block][0] for block in wanted}


def _parse(source: str, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the parser thinks of a source's escapes
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        at = f" in its line {line}" if line else ""
        said = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise RefusedReply("syntax", f"{what} cannot be parsed{at}: {said}") from None


def _environment_class(tree: ast.Module, fields: list[str]) -> str:
    """Name of the only ToolEnv, whose parts are checked. Raises RefusedReply."""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = [node for node in classes.values() if "ToolEnv" in map(_last_name, node.bases)]
    if len(found) != 1:
        names = f": {', '.join(node.name for node in found)}" if found else ""
        raise RefusedReply(
            "class", f"the module has {len(found)} subclasses of ToolEnv{names}: write exactly one"
        )
    (env,) = found
    methods = [node for node in env.body if isinstance(node, ast.FunctionDef)]
    missing = [name for name in _METHODS if name not in {node.name for node in methods}]
    if missing:
        raise RefusedReply("class", f"{env.name} lacks {', '.join(missing)}: write them")
    tools = [node.name for node in methods if "tool" in map(_last_name, node.decorator_list)]
    if len(tools) < MIN_TOOLS:
        raise RefusedReply(
            "tools",
            f"{env.name} has {len(tools)} tools besides done: write at least {MIN_TOOLS}",
        )
    has = _config_fields(env, classes)
    if sorted(has) != sorted(fields):
        raise RefusedReply(
            "fields",
            f"Config of {env.name} has the fields {', '.join(has) or '(none)'}: it must have those of "
            f"the solution: {', '.join(fields)}",
        )
    return env.name


def _config_fields(env: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Fields of the struct that `Config` of an environment is, in or outside of it."""
    for node in env.body:
        match node:
            case ast.ClassDef(name="Config"):
                return _fields(node, classes)
            case (
                ast.Assign(targets=[ast.Name(id="Config")], value=ast.Name(id=name))
                | ast.AnnAssign(target=ast.Name(id="Config"), value=ast.Name(id=name))
            ) if name in classes:
                return _fields(classes[name], classes)
    raise RefusedReply(
        "fields", f"{env.name} has no Config: write a msgspec.Struct in this module and assign it"
    )


def _fields(struct: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int = 0) -> list[str]:
    """Annotated names of a class and of those it builds on, but for ClassVars."""
    if depth > len(classes):
        raise RefusedReply("fields", f"{struct.name} builds on itself")
    found = []
    for base in struct.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found += _fields(classes[base.id], classes, depth + 1)
    for node in struct.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if "ClassVar" not in ast.unparse(annotation):
                    found.append(name)
    return list(dict.fromkeys(found))


def _last_name(node: ast.expr) -> str:
    """`b` of `b`, `a.b` and `a.b(...)`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=function):
            return _last_name(function)
    return ""


def _configurations(text: str, fields: list[str]) -> tuple[Config, ...]:
    """Configurations, each once, in the order given. Raises RefusedReply."""
    try:
        found: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RefusedReply("format", f"the configurations are no JSON: {error}") from None
    if not isinstance(found, list):
        raise RefusedReply("format", "the configurations must be a JSON list of objects")
    for index, config in enumerate(found):
        if not isinstance(config, dict) or sorted(config) != sorted(fields):
            raise RefusedReply(
                "fields",
                f"configuration {index} must be an object with exactly the fields {', '.join(fields)}",
            )
    different = {json.dumps(config, sort_keys=True): config for config in found}
    if len(different) < MIN_CONFIGS:
        raise RefusedReply(
            "format",
            f"there are {len(different)} different configurations: give at least {MIN_CONFIGS}",
        )
    return tuple(different.values())
