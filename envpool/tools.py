"""What a tool is: a typed, docstringed method, the schema derived from it, and how a call is checked.

The schema is the one OpenAI's chat API takes for functions. The descriptions come from the docstring:
the text before `Args:` (Google style) describes the tool, the section itself its arguments.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

import msgspec

Schema = dict[str, Any]
Arguments = dict[str, Any]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_MARK = "_millrace_tool"
_ARGUMENT = re.compile(r"(\w+)(?: \([^)]*\))?: *(.*)")


class ToolInputError(Exception):
    """A call that cannot be carried out. Its text is shown to the policy, so it must stay short."""


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
        return {name: getattr(checked, name) for name in self.arguments_type.__struct_fields__}


def tool(method: F) -> F:
    """Mark a method as a tool. It must have a docstring and a type for each argument."""
    setattr(method, _MARK, True)
    return method


def is_tool(member: object) -> bool:
    return getattr(member, _MARK, False)


def describe(method: Callable[..., Any], types: dict[str, Any] | None = None) -> Tool:
    """Derive a tool from a method; `types` replaces annotations. Raises TypeError if it cannot be."""
    name = method.__name__
    hints = {**get_type_hints(method, include_extras=True), **(types or {})}
    text, described = _parse_docstring(inspect.getdoc(method) or "")
    parameters = list(inspect.signature(method).parameters.values())[1:]  # without self
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {name}: argument {parameter.name} must be a named one")
        if parameter.name not in hints or parameter.name not in described:
            raise TypeError(f"tool {name}: {parameter.name} needs a type and a line under Args:")
    unknown = described.keys() - {parameter.name for parameter in parameters}
    if unknown or not text:
        raise TypeError(f"tool {name}: its docstring is missing or describes unknown {unknown}")
    return Tool(
        name=name,
        signature=f"({', '.join(f'{p.name}: {_type_name(hints[p.name])}' for p in parameters)})",
        schema=_schema(name, text, parameters, hints, described),
        arguments_type=msgspec.defstruct(
            f"{name}_arguments",
            [_field(parameter, hints[parameter.name]) for parameter in parameters],
            kw_only=True,
            forbid_unknown_fields=True,
        ),
    )


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


_decode_call = msgspec.json.Decoder(Call).decode


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
