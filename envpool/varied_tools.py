"""The tools of a varied task: their schemas as shown, and the way back to those that they stand for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from configs.load import ConfigError
from envpool.tools import Arguments, Schema, Tool, ToolInputError, signature_of
from envpool.variation import DONE, Distractor, Paginate, Permute, Variation

_TYPES: dict[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}


@dataclass(slots=True, kw_only=True, frozen=True)
class VariedTool:
    """A tool under the name that it is called by."""

    shown: Tool
    """Its name, signature and schema as the policy sees them."""
    plain: Tool | None = None
    """The environment's own; None for a tool that the environment does not know."""
    back: dict[str, str] = field(default_factory=dict)
    """The environment's name of each parameter shown."""
    replies: tuple[str, ...] = ()
    """Of a distractor."""

    def check(self, arguments: Arguments) -> Arguments:
        """Arguments under the environment's names; raises ToolInputError for those that do not fit."""
        if self.plain is None:
            return self.shown.check(arguments)
        wrong = ToolInputError(f"{self.shown.name} takes {self.shown.signature}")
        if not arguments.keys() <= self.back.keys():
            raise wrong
        mapped = {self.back[name]: value for name, value in arguments.items()}
        try:
            self.plain.check(mapped)
        except ToolInputError as error:
            raise wrong from error
        return mapped


class Rewording:
    """Says in texts what tools are called now. Only what is surely a name is replaced."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = {old: new for old, new in names.items() if old != new}
        words = "|".join(map(re.escape, sorted(self._names, key=len, reverse=True)))
        self._pattern = re.compile(rf"\b(?:{words})\b")

    def __call__(self, text: str) -> str:
        return self._pattern.sub(self._new, text) if self._names else text

    def _new(self, match: re.Match[str]) -> str:
        text, old = match.string, match[0]
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        # Other words are plain English.
        is_name = (before == "`" and after == "`") or after == "(" or "_" in old
        return self._names[old] if is_name else old


def vary_tools(
    tools: Mapping[str, Tool], variation: Variation, env: str
) -> tuple[dict[str, VariedTool], Rewording]:
    """The tools as shown, by the names they are called by, and the words for them, for other texts.

    Raises ConfigError where the variation does not fit the tools of `env`.
    """
    _check_names(tools, variation, env)
    names = {name: rename.name or name for name, rename in variation.rename.items()}
    reword = Rewording(names)
    varied = [_varied(tool, variation, reword, env) for tool in tools.values() if tool.name != DONE]
    for distractor in variation.distract:
        varied.insert(distractor.at, _distractor(distractor))
    if variation.paginate is not None:
        varied.append(_page_tool(variation.paginate))
    varied.append(VariedTool(shown=tools[DONE], plain=tools[DONE]))
    found: dict[str, VariedTool] = {}
    for tool in varied:
        if tool.shown.name in found:
            raise ConfigError(
                f"variation of {env}: two tools would be called {tool.shown.name!r}: rename one"
            )
        found[tool.shown.name] = tool
    return found, reword


def _check_names(tools: Mapping[str, Tool], variation: Variation, env: str) -> None:
    named = {
        "rename": variation.rename,
        "permute": variation.permute,
        "fail.tools": variation.fail.tools if variation.fail is not None else [],
    }
    for where, names in named.items():
        for name in names:
            if name == DONE:
                raise ConfigError(f"variation of {env}: {where} has {DONE!r}, which stays as it is")
            if name not in tools:
                known = ", ".join(tool for tool in tools if tool != DONE)
                raise ConfigError(
                    f"variation of {env}: {where} has {name!r}, which is no tool of it: there are {known}"
                )


def _varied(tool: Tool, variation: Variation, reword: Rewording, env: str) -> VariedTool:
    rename = variation.rename.get(tool.name)
    name = (rename.name if rename else None) or tool.name
    function = tool.schema["function"]
    permute = variation.permute.get(tool.name, Permute())
    properties: dict[str, Schema] = function["parameters"]["properties"]
    order = _order(list(properties), permute, f"variation of {env}: permute.{tool.name}")
    shown_as = {old: permute.names.get(old, old) for old in order}
    if len(set(shown_as.values())) < len(shown_as):
        raise ConfigError(
            f"variation of {env}: permute.{tool.name}.names gives two parameters one name: "
            f"{', '.join(shown_as.values())}"
        )
    reword_all = Rewording(shown_as)
    parameters = {
        **function["parameters"],
        "properties": {
            shown_as[old]: {
                **properties[old],
                "description": reword_all(reword(properties[old]["description"])),
            }
            for old in order
        },
        "required": [shown_as[old] for old in order if old in function["parameters"]["required"]],
    }
    own_text = reword_all(reword(function["description"]))
    description = (rename.description if rename else None) or own_text
    types = {f.name: f.type for f in msgspec.structs.fields(tool.arguments_type)}
    shown = Tool(
        name=name,
        signature=signature_of((shown_as[old], types[old]) for old in order),
        schema=_schema(name, description, parameters),
        arguments_type=tool.arguments_type,
    )
    return VariedTool(shown=shown, plain=tool, back={new: old for old, new in shown_as.items()})


def _order(parameters: list[str], permute: Permute, where: str) -> list[str]:
    known = ", ".join(parameters) or "none"
    for name in permute.names:
        if name not in parameters:
            raise ConfigError(f"{where}.names has {name!r}, no parameter of it: there are {known}")
    if permute.order and sorted(permute.order) != sorted(parameters):
        raise ConfigError(
            f"{where}.order is {permute.order}: name each of its parameters once ({known})"
        )
    return permute.order or parameters


def _distractor(distractor: Distractor) -> VariedTool:
    kinds = [(name, _TYPES[p.type]) for name, p in distractor.parameters.items()]
    properties = {
        name: {"type": parameter.type, "description": parameter.description}
        for name, parameter in distractor.parameters.items()
    }
    shown = _tool(distractor.name, distractor.description, kinds, properties)
    return VariedTool(shown=shown, replies=tuple(distractor.replies))


def _page_tool(paginate: Paginate) -> VariedTool:
    text = "Read a page of the last observation that came in pages."
    properties = {"page": {"type": "integer", "description": "Number of the page, from 1."}}
    return VariedTool(shown=_tool(paginate.tool, text, [("page", int)], properties))


def _tool(
    name: str, text: str, kinds: Iterable[tuple[str, type]], properties: dict[str, Schema]
) -> Tool:
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    kinds = list(kinds)
    return Tool(
        name=name,
        signature=signature_of(kinds),
        schema=_schema(name, text, parameters),
        arguments_type=msgspec.defstruct(
            f"{name}_arguments", kinds, kw_only=True, forbid_unknown_fields=True
        ),
    )


def _schema(name: str, text: str, parameters: Schema) -> Schema:
    function = {"name": name, "description": text, "parameters": parameters}
    return {"type": "function", "function": function}
