"""`synth.llm.replies`: what passes for a reply, and what goes back."""

import json

import pytest

from synth.llm.replies import (
    Block,
    RefusedReply,
    Reply,
    fields_of,
    read_environment,
    read_solver,
)
from synth.problem import Problem
from tests.synth.llm_server import ENVIRONMENT, PROBLEM, SOLVER


def test_a_good_reply_is_read() -> None:
    written = read_environment(Reply(text=ENVIRONMENT), PROBLEM)
    assert written.env == "lift_wear" and len(written.configs) == 10
    assert written.source.startswith('"""') and "class LiftWear(ToolEnv):" in written.source
    assert sorted(written.configs[0]) == ["calls", "start"]
    assert "def solve(start" in read_solver(Reply(text=SOLVER), PROBLEM)


def test_thoughts_and_line_ends_are_no_matter() -> None:
    thoughts = "<think>\n```python environment\nnot yet\n```\n</think>\n"
    reply = Reply(text=thoughts + ENVIRONMENT.replace("\n", "\r\n"))
    assert read_environment(reply, PROBLEM) == read_environment(Reply(text=ENVIRONMENT), PROBLEM)


@pytest.mark.parametrize(
    ("old", "new", "reason", "said"),
    [
        ("```python environment", "```python", "format", "python environment"),
        ("```json configurations", "```json", "format", "json configurations"),
        ("class LiftWear(ToolEnv):", "class LiftWear(ToolEnv:", "syntax", "in its line"),
        ("class LiftWear(ToolEnv):", "class LiftWear(Env):", "class", "0 subclasses"),
        (
            "class Building",
            "class Two(ToolEnv):\n    pass\n\n\nclass Building",
            "class",
            "2 subclasses",
        ),
        ("def oracle(self)", "def oracles(self)", "class", "lacks oracle"),
        ("    @tool\n", "", "tools", "0 tools"),
        (
            "    start: Floor",
            "    begin: Floor",
            "fields",
            "must have those of the solution: start, calls",
        ),
        ("    Config = Building", "    Config = Elsewhere", "fields", "no Config"),
        ('[\n  {"start"', '[\n  {"begin"', "fields", "configuration 0"),
        ("\n  {", "\n  x{", "format", "no JSON"),
    ],
)
def test_a_wrong_environment_is_refused_with_a_message(
    old: str, new: str, reason: str, said: str
) -> None:
    assert old in ENVIRONMENT
    with pytest.raises(RefusedReply, match=said) as caught:
        read_environment(Reply(text=ENVIRONMENT.replace(old, new)), PROBLEM)
    assert caught.value.reason == reason and caught.value.is_repairable


def test_a_block_that_is_there_twice_is_refused() -> None:
    with pytest.raises(RefusedReply, match="is there 2 times"):
        read_environment(Reply(text=ENVIRONMENT + ENVIRONMENT), PROBLEM)


@pytest.mark.parametrize("configs", [{}, [], [1], [{"start": 1, "calls": [[1, 2]]}] * 5])
def test_configurations_are_different_objects(configs: object) -> None:
    head = ENVIRONMENT.partition(f"```{Block.CONFIGURATIONS}\n")[0]
    text = f"{head}```{Block.CONFIGURATIONS}\n{json.dumps(configs)}\n```\n"
    with pytest.raises(RefusedReply):
        read_environment(Reply(text=text), PROBLEM)


def test_fields_may_be_inherited_and_inside() -> None:
    inner = ENVIRONMENT.replace(
        "class Building(msgspec.Struct", "class Start(msgspec.Struct"
    ).replace(
        '    """Where the lift stands, and the calls as [origin, target]."""\n\n    start: Floor\n',
        "    start: Floor\n\n\nclass Building(Start, frozen=True, kw_only=True):\n    limit: ClassVar[int] = 3\n",
    )
    assert inner != ENVIRONMENT
    assert read_environment(Reply(text=inner), PROBLEM).env == "lift_wear"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(text="I'm sorry, but I can't help with that."),
        Reply(text="I cannot write this."),
        Reply(text="", refusal="no"),
        Reply(text="half of", finish="content_filter"),
    ],
)
def test_who_declines_is_not_asked_again(reply: Reply) -> None:
    with pytest.raises(RefusedReply, match="declined") as caught:
        read_environment(reply, PROBLEM)
    assert caught.value.reason == "refusal" and not caught.value.is_repairable


def test_an_apology_before_a_good_reply_is_no_refusal() -> None:
    assert read_environment(Reply(text=f"I'm sorry for that.\n\n{ENVIRONMENT}"), PROBLEM)


def test_a_reply_cut_off_is_refused_even_where_it_looks_whole() -> None:
    with pytest.raises(RefusedReply) as caught:
        read_environment(Reply(text=ENVIRONMENT, finish="length"), PROBLEM)
    assert caught.value.reason == "truncated" and caught.value.is_repairable


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("```python solver", "```python", "format"),
        ("def solve(", "def solve((", "syntax"),
        ("def solve(", "def answer(", "entry"),
        ("start: int, calls", "calls", "entry"),
        ("start: int, calls", "*, start, calls, **more", "entry"),
    ],
)
def test_a_wrong_solver_is_refused(old: str, new: str, reason: str) -> None:
    assert old in SOLVER
    with pytest.raises(RefusedReply) as caught:
        read_solver(Reply(text=SOLVER.replace(old, new)), PROBLEM)
    assert caught.value.reason == reason


@pytest.mark.parametrize("source", ["x = " + "(" * 500, "x = " + "-" * 100_000 + "1", "x\0y"])
def test_sources_that_break_parsers_are_refused(source: str) -> None:
    with pytest.raises(RefusedReply):
        read_solver(Reply(text=f"```python solver\n{source}\n```\n"), PROBLEM)


def test_a_program_on_standard_input_has_one_field() -> None:
    problem = Problem(id="echo", statement="Echo.", solutions=("print(input())",), kind="stdin")
    assert fields_of(problem) == ["stdin"]
    assert read_solver(Reply(text="```python solver\nprint(input())\n```"), problem)


def test_an_environment_has_the_id_that_a_pool_gives_it() -> None:
    text = ENVIRONMENT.replace("class LiftWear(", "class HTTPLift2Go(")
    assert read_environment(Reply(text=text), PROBLEM).env == "http_lift2_go"
