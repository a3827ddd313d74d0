r"""From a model's reply to the action an environment gets: the first tool call in it.

The format is Hermes', as Qwen models write it:
`<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>`. Nothing is judged here: what is not a
call goes to the environment as it is, which answers with an error that the model can read.
"""

OPEN = "<tool_call>"
CLOSE = "</tool_call>"


def parse(reply: str) -> str:
    """The inside of the first tool call, without outer white space; the reply when it has none.

    A call that the token budget cut short is taken as far as it goes. Never raises.
    """
    _, found, rest = reply.partition(OPEN)
    return rest.partition(CLOSE)[0].strip() if found else reply


def render(action: str) -> str:
    """The reply that calls `action`, a JSON object; `parse` gives it back."""
    return f"{OPEN}\n{action}\n{CLOSE}"
