"""`rollout.toolcall`: what of a reply reaches the environment."""

import json

from hypothesis import given
from hypothesis import strategies as st

from rollout.toolcall import parse, render

_PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"name"', "a", "\x00"]
)


def test_first_call_counts_when_there_are_several() -> None:
    reply = f"I will look.\n{render('first')}\n{render('second')}"
    assert parse(reply) == "first"


def test_call_is_taken_as_far_as_it_goes_when_the_reply_was_cut() -> None:
    assert parse('<tool_call>\n{"name": "get", "argum') == '{"name": "get", "argum'


def test_reply_is_the_action_when_it_has_no_call() -> None:
    assert parse(" the answer is 3 ") == " the answer is 3 "


def test_inside_is_taken_when_the_call_is_empty() -> None:
    assert parse("<tool_call></tool_call>") == ""


@given(st.one_of(st.text(), st.lists(_PARTS).map("".join)))
def test_action_is_part_of_the_reply_whatever_it_is(reply: str) -> None:
    action = parse(reply)
    assert action in reply
    assert ("<tool_call>" in reply) or action == reply
    assert "</tool_call>" not in action or "<tool_call>" not in reply


@given(st.dictionaries(st.text(), st.integers() | st.text()))
def test_parse_gives_back_what_render_wrote_when_json_is_escaped(arguments: dict) -> None:
    # A closing mark inside a string would end the call: JSON writers escape it or the call is lost.
    action = json.dumps({"name": "get", "arguments": arguments}).replace("</", "<\\/")
    assert parse(render(action)) == action
