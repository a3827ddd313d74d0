"""Tasks in formats of others: rows of RL instances as CodeGym's trainers read them, and chat demonstrations."""

import ast
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from configs.sft import Message, MessagesRow
from envpool.folder import env_id_of
from envpool.task import VARIATION
from envpool.tools import Schema, Tool
from envpool.variation import read_variation
from envpool.varied_tools import vary_tools
from rollout import toolcall
from synth.records import Made, MadeTask
from synth.traces import call_text

DATA_SOURCE = "codegym_v1"


class RewardModel(msgspec.Struct, frozen=True, kw_only=True):
    """Who says whether an answer is right: the environment, not this row."""

    ground_truth: None = None
    style: str = "agent_env"


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """What a trainer does not need to know."""

    index: int
    gym_env: str
    """Source of the environment: a ToolEnv of this project."""
    solve_fc_round: int
    """Calls of the shortest winning trace found."""
    split: str
    level: int


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One task."""

    ability: str
    """`codegym_v1@<code_id>__<ClassName>@<configuration as a Python literal>`."""
    code_id: str
    data_source: str = DATA_SOURCE
    prompt: list[Message]
    reward_model: RewardModel = RewardModel()
    answer: str = ""
    """A placeholder: the right answer stays inside."""
    plugin_call_max_round: int
    extra_info: Extra


def instances(made: Sequence[Made], sides: Sequence[str], *, max_calls: int) -> Iterator[Instance]:
    """A row for each task of environments, which are on `sides`."""
    index = 0
    for one, side in zip(made, sides, strict=True):
        draft = one.draft
        # Two underscores end the id where it is read.
        code_id = f"Millrace_{draft.env.replace('__', '_').strip('_')}_I"
        name = class_name(draft.source, draft.env)
        for task in one.tasks:
            yield Instance(
                ability=f"{DATA_SOURCE}@{code_id}__{name}@{task.config!r}",
                code_id=code_id,
                prompt=prompt(tools_of(one, task), task.prompt),
                plugin_call_max_round=max_calls,
                extra_info=Extra(
                    index=index,
                    gym_env=draft.source,
                    solve_fc_round=task.num_calls,
                    split=side,
                    level=task.level,
                ),
            )
            index += 1


def class_name(source: str, env: str) -> str:
    """The class of an environment in its source; raises ValueError without one."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and env_id_of(node.name) == env:
            return node.name
    raise ValueError(f"the source of environment {env!r} has no class whose id that is")


def prompt(tools: Sequence[Schema], statement: str) -> list[Message]:
    """Tools and task as messages for a trainer that knows no schemas."""
    described = "\n\n".join(_described(tool["function"]) for tool in tools)
    how = (
        "Solve the task by calling tools, one call in each reply, and wait for its result before the next. "
        "What the task is about can only be seen through them. A call is a JSON list of one object with "
        "`name` and `parameters`, between <|FunctionCallBegin|> and <|FunctionCallEnd|>. End with the tool "
        "`done`, which takes the answer and can be called once."
    )
    return [
        Message(role="system", content=described),
        Message(role="user", content=f"{how}\n\nTask:\n{statement}"),
    ]


def demonstration(one: Made, task: MadeTask) -> MessagesRow:
    """The winning trace of a task as chat messages: the task, then calls and observations in turn."""
    messages = [Message(role="user", content=task.prompt)]
    for move in task.trace:
        reply = toolcall.render(call_text(move.name, move.arguments))
        messages.append(Message(role="assistant", content=reply))
        messages.append(Message(role="tool", content=move.observation))
    # The last reply ends it: what `done` says is for nobody.
    return MessagesRow(
        env=one.draft.env, messages=messages[:-1], tools=tools_of(one, task), reward=1.0
    )


def tools_of(one: Made, task: MadeTask) -> list[Schema]:
    """The schemas that a player of a task is shown: the environment's, or what its variation makes of them."""
    if VARIATION not in task.config:
        return list(one.tools)
    plain = {schema["function"]["name"]: _tool(schema) for schema in one.tools}
    variation = read_variation(task.config[VARIATION], one.draft.env)
    varied, _ = vary_tools(plain, variation, one.draft.env)
    return [tool.shown.schema for tool in varied.values()]


def _tool(schema: Schema) -> Tool:
    """A tool as far as its schema tells: enough to reword it, and nothing can call it."""
    function = schema["function"]
    parameters = [(name, Any) for name in function["parameters"]["properties"]]
    return Tool(
        name=function["name"],
        signature="",
        schema=schema,
        arguments_type=msgspec.defstruct("arguments", parameters, kw_only=True),
    )


def _described(function: dict[str, Any]) -> str:
    parameters = function.get("parameters", {})
    return (
        f"Function: {function['name']}\n{function.get('description', '')}\n"
        f"Parameters (JSON schema): {json.dumps(parameters, ensure_ascii=False)}"
    )
