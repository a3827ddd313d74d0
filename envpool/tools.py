"""What a tool is: a typed, docstringed method, the schema derived from it, and how a call is checked.

The schema is the one OpenAI's chat API takes for functions. The descriptions come from the docstring:
the text before `Args:` (Google style) describes the tool, the section itself its arguments.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import msgspec

from envpool.blame import defined_at

Schema = dict[str, Any]
Arguments = dict[str, Any]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_MARK = "_millrace_tool"
_ARGUMENT = re.compile(r"(\w+)(?: \([^)]*\))?: *(.*)")


class ToolInputError(Exception):
    """A call that cannot be carried out. Its text is shown to the policy, so it must stay short."""


class DefinitionError(TypeError):
    """A tool or an environment that cannot be one; the text says where, what is wrong, the cure."""

    def __init__(self, text: str, place: str = "") -> None:
        super().__init__(f"{place}: {text}" if place else text)
        self.place = place
        """`file:line` of the definition, where it has one of its own."""


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One action: which tool, with what."""

    name: str
    arguments: Arguments = {}


@dataclass(slots=True, kw_only=True, frozen=True)
class Tool:
    """One tool of an environment class. `signature` is shown when a call does not fit it."""

    name: str
    signature: str
    schema: Schema
    arguments_type: type[msgspec.Struct]

    def check(self, arguments: Arguments) -> Arguments:
        """Arguments as typed values; raises ToolInputError for missing, extra or wrong ones."""
        try:
            checked = msgspec.convert(arguments, self.arguments_type, strict=True)
        except (msgspec.ValidationError, RecursionError) as error:
            raise ToolInputError(f"{self.name} takes {self.signature}") from error
        return msgspec.structs.asdict(checked)


def tool(method: F) -> F:
    """Mark a method as a tool. It must have a docstring and a type for each argument."""
    setattr(method, _MARK, True)
    return method


def is_tool(member: object) -> bool:
    return getattr(member, _MARK, False)


def describe(method: Callable[..., Any], types: dict[str, Any] | None = None) -> Tool:
    """Derive a tool from a method; `types` replaces annotations. Raises DefinitionError."""
    name = method.__name__
    hints = {**_hints(method), **(types or {})}
    text, described = _parse_docstring(inspect.getdoc(method) or "")
    if not text:
        raise mistake(method, "no docstring: describe in it what the tool does")
    parameters = list(inspect.signature(method).parameters.values())[1:]  # without self
    _check_arguments(method, parameters, hints, described)
    try:
        arguments_type = msgspec.defstruct(
            f"{name}_arguments",
            [_field(parameter, hints[parameter.name]) for parameter in parameters],
            kw_only=True,
            forbid_unknown_fields=True,
        )
    except TypeError as error:
        raise mistake(method, f"{error}: give it other arguments or defaults") from error
    return Tool(
        name=name,
        signature=signature_of((p.name, hints[p.name]) for p in parameters),
        schema=_schema(name, text, parameters, hints, described),
        arguments_type=arguments_type,
    )


def mistake(method: Callable[..., Any], text: str) -> DefinitionError:
    """What is wrong with a tool, with the place of its definition."""
    name = method.__qualname__.rpartition("<locals>.")[2]
    return DefinitionError(f"tool {name}: {text}", defined_at(method))


def check_type(kind: Any) -> None:
    """Raise TypeError for a type whose values a call cannot carry."""
    try:
        msgspec.json.schema_components([kind])
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"type {_type_name(kind)} cannot be written in JSON: use int, float, bool, str, Literal, "
            "list, dict or a msgspec.Struct of these"
        ) from error


def parse_call(action: str) -> Call:
    """Read the JSON text of one call; raises ToolInputError for anything else."""
    try:
        return _decode_call(action)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ToolInputError('a call is JSON: {"name": ..., "arguments": {...}}') from error


def call_text(name: str, arguments: Arguments) -> str:
    """The JSON text of one call, as `step` takes it."""
    return msgspec.json.encode(Call(name=name, arguments=arguments)).decode()


def at(items: Sequence[T], index: int) -> T:
    """`items[index]` for a position given by the policy; raises ToolInputError outside 0..len-1."""
    if not 0 <= index < len(items):
        raise ToolInputError("index out of range")
    return items[index]


def signature_of(parameters: Iterable[tuple[str, Any]]) -> str:
    """Names and types of parameters, as a policy is shown them, e.g. `(index: int)`."""
    return f"({', '.join(f'{name}: {_type_name(kind)}' for name, kind in parameters)})"


_decode_call = msgspec.json.Decoder(Call).decode


def _hints(method: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(method, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise mistake(method, f"its annotations cannot be read: {error}: correct them") from error


def _check_arguments(
    method: Callable[..., Any],
    parameters: list[inspect.Parameter],
    hints: dict[str, Any],
    described: dict[str, str],
) -> None:
    """Raise DefinitionError unless each argument has a name, a type and a line that describes it."""
    names = [parameter.name for parameter in parameters]
    for parameter in parameters:
        name = parameter.name
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise mistake(method, f"argument {name} must be a named one: write it without * or /")
        if name not in hints:
            raise mistake(method, f"argument {name} has no type: write `{name}: int`, or another")
        try:
            check_type(hints[name])
        except TypeError as error:
            raise mistake(method, f"argument {name}: {error}") from error
    for name in described:
        if name not in names:
            known = f"its arguments are {', '.join(names)}" if names else "it takes none"
            raise mistake(
                method, f"Args: describes {name}, and {known}: correct the name or remove the line"
            )
    for name in names:
        if name not in described:
            raise mistake(
                method,
                f"argument {name} has no line in the docstring: add `{name}: what it is` under Args:",
            )


def _field(parameter: inspect.Parameter, hint: Any) -> Any:
    if parameter.default is parameter.empty:
        return (parameter.name, hint)
    return (parameter.name, hint, parameter.default)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _schema(
    name: str,
    text: str,
    parameters: list[inspect.Parameter],
    hints: dict[str, Any],
    described: dict[str, str],
) -> Schema:
    types = [hints[parameter.name] for parameter in parameters]
    schemas, definitions = msgspec.json.schema_components(types)
    properties: Schema = {}
    for parameter, schema in zip(parameters, schemas, strict=True):
        properties[parameter.name] = {**schema, "description": described[parameter.name]}
        if parameter.default is not parameter.empty:
            properties[parameter.name]["default"] = parameter.default
    arguments: Schema = {
        "type": "object",
        "properties": properties,
        "required": [p.name for p in parameters if p.default is p.empty],
        "additionalProperties": False,
    }
    if definitions:
        arguments["$defs"] = definitions
    function = {"name": name, "description": text, "parameters": arguments}
    return {"type": "function", "function": function}


def _parse_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its description and its `Args:` entries.

    Sections after `Args:` (Returns, Raises) are for the reader of the code and left out.
    """
    head, _, rest = text.partition("\nArgs:\n")
    described: dict[str, str] = {}
    last = ""
    for line in rest.splitlines():
        if line and not line.startswith(" "):
            break
        entry = _ARGUMENT.match(line.strip())
        is_new = entry is not None and len(line) - len(line.lstrip()) <= 4
        if entry is not None and is_new:
            last = entry[1]
            described[last] = entry[2]
        elif last:
            described[last] = f"{described[last]} {line.strip()}".strip()
    description = re.split(r"\n(?:Returns|Raises|Yields|Examples?):\n", head)[0]
    return " ".join(description.split()), described
