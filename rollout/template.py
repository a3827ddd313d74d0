"""A model's own chat template, probed once: how a turn continues the text before it.

`rollout/tokens.py` is its only user. A template is *append-only* when a further turn leaves the
text before it as it was; then what lies between two replies (`Frame`) is known once and for all.
Others (they strip earlier thinking, or white space) are rendered anew for every turn.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

# One OpenAI function schema.
Tool = dict[str, Any]

# Plain letters: no template treats them specially, no observation contains them by chance.
_SENTINEL = "SentinelOfTextQzv{}Vzq"

# Replies that templates are known to rewrite: outer white space, thinking, calls, nothing at all.
_PROBE_REPLIES = (
    "plain",
    " \n spaced \n ",
    "<think>\na\n</think>\n\nb",
    "<think>a</think>b",
    "a</think>\nb",
    '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>',
    "",
)
_PROBE_OBSERVATION = " \n seen \n "
_PROBE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "get",
        "description": "Get.",
        "parameters": {"type": "object", "properties": {}, "required": []},
    },
}


class Exchange(NamedTuple):
    """A reply without its stop token, and what the environment answered."""

    reply: str
    observation: str


class Piece(NamedTuple):
    """Part of a rendered conversation; in untrusted text, control strings are only text."""

    text: str
    is_untrusted: bool


class Frame(NamedTuple):
    """What the template puts around an observation: from a reply's end, to the next one's start."""

    before: str
    after: str


class ChatTemplate:
    """Renders conversations of one user message, then replies and observations in turn.

    Raises ValueError when the tokenizer has no template, or one that shows observations under
    neither the role `tool` nor `user`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                f"model {tokenizer.name_or_path!r} has no chat template: use an instruct model, or "
                "add chat_template.jinja to its directory"
            )
        self._role = self._observation_role()
        self.frame = self._probe_frame()
        self.is_append_only = self._probe_history()

    def render(self, text: str, exchanges: Sequence[Exchange], tools: Sequence[Tool]) -> str:
        """The whole conversation up to where the next reply begins."""
        messages = [{"role": "user", "content": text}]
        for exchange in exchanges:
            messages.append({"role": "assistant", "content": exchange.reply})
            messages.append({"role": self._role, "content": exchange.observation})
        rendered = self._tokenizer.apply_chat_template(
            messages, tools=list(tools) or None, add_generation_prompt=True, tokenize=False
        )
        assert isinstance(rendered, str), "tokenize=False gives text"
        return rendered

    def pieces(
        self, text: str, exchanges: Sequence[Exchange], tools: Sequence[Tool]
    ) -> list[Piece]:
        """As `render`, with the environment's words told apart from the template's."""
        words = [text, *(exchange.observation for exchange in exchanges)]
        marks = [_SENTINEL.format(index) for index in range(len(words))]
        marked = [
            Exchange(exchange.reply, mark)
            for exchange, mark in zip(exchanges, marks[1:], strict=True)
        ]
        rest = self.render(marks[0], marked, tools)
        pieces = []
        for word, mark in zip(words, marks, strict=True):
            before, found, after = rest.partition(mark)
            if found:  # a template may drop old observations
                pieces += [Piece(before, False), Piece(word, True)]
                rest = after
        return [*pieces, Piece(rest, False)]

    def _observation_role(self) -> str:
        mark = _SENTINEL.format(1)
        for self._role in ("tool", "user"):
            try:
                if mark in self.render("task", [Exchange("reply", mark)], []):
                    return self._role
            except TemplateError:
                continue
        raise ValueError(
            f"the chat template of {self._tokenizer.name_or_path!r} shows observations neither as "
            "'tool' nor as 'user' messages"
        )

    def _probe_frame(self) -> Frame:
        reply, observation = _SENTINEL.format(1), _SENTINEL.format(2)
        rendered = self.render("task", [Exchange(reply, observation)], [])
        before, _, after = rendered.partition(reply)[2].partition(observation)
        return Frame(before, after)

    def _probe_history(self) -> bool:
        return all(
            self._keeps(_PROBE_REPLIES[:count], tools)
            for tools in ([], [_PROBE_TOOL])
            for count in range(1, len(_PROBE_REPLIES) + 1)
        )

    def _keeps(self, replies: Sequence[str], tools: Sequence[Tool]) -> bool:
        expected = self.render("task", [], tools)
        for reply in replies:
            expected += reply + self.frame.before + _PROBE_OBSERVATION + self.frame.after
        exchanges = [Exchange(reply, _PROBE_OBSERVATION) for reply in replies]
        return self.render("task", exchanges, tools) == expected
