"""A solution becomes an environment that its own program wins, and that shows no more than it must.

What is compiled here is this file's own text, so that it may be run in the test's process.
"""

import ast
import textwrap
from random import Random
from typing import Any

import pytest

from configs.synth import ExtractRecipe
from envpool.env import ToolEnv
from envpool.tools import call_text
from synth.extract.emit import class_name
from synth.extract.synthesizer import drafts
from synth.problem import Problem, Test
from synth.records import Draft, Refusal
from synth.screen import screen

Played = list[tuple[str, dict[str, Any], str]]


def draft_all(source: str, *examples: tuple[dict[str, Any], Any]) -> list[Draft | Refusal]:
    problem = Problem(
        id="some_task",
        statement="Work it out. By the rules.",
        solutions=(textwrap.dedent(source),),
        tests=tuple(Test(args=args, answer=answer) for args, answer in examples),
    )
    return list(drafts(problem, problem.tests, ExtractRecipe(), configs=()))


def draft(source: str, *examples: tuple[dict[str, Any], Any]) -> Draft:
    """The finest one."""
    first = draft_all(source, *examples)[0]
    assert isinstance(first, Draft), first
    return first


def env_of(one: Draft) -> type[ToolEnv]:
    names: dict[str, Any] = {}
    exec(compile(one.source, "draft", "exec"), names)
    return names[class_name(one.env)]


def play(env_type: type[ToolEnv], config: dict[str, Any]) -> tuple[Played, float]:
    """The oracle's calls, made by nothing but what the statement and observations say."""
    env = env_type()
    env.reset(seed=0, options=config)
    oracle = env_type.oracle(None)  # type: ignore[arg-type]  # it may look at nothing
    name, arguments = next(oracle)
    played: Played = []
    while True:
        observation, reward, is_over, _, info = env.step(call_text(name, arguments))
        played.append((name, arguments, observation))
        assert not info["is_bad_call"], played[-1]
        if is_over:
            return played, reward
        name, arguments = oracle.send(observation)


def check_wins(one: Draft, *configs: dict[str, Any]) -> list[Played]:
    env_type = env_of(one)
    found = []
    for config in configs:
        played, reward = play(env_type, config)
        assert reward == 1.0, played
        found.append(played)
    return found


STACK = """
def solve(prices: list[int]) -> int:
    stack: list[int] = []
    total = 0
    for i in range(len(prices)):
        while stack and prices[stack[-1]] > prices[i]:
            j = stack.pop()
            total += i - j
        stack.append(i)
    return total - len(stack)
"""


def test_its_program_wins_on_every_input() -> None:
    rng = Random(0)
    configs = [{"prices": [rng.randint(0, 9) for _ in range(size)]} for size in range(12)]
    for played in check_wins(draft(STACK), *configs):
        assert played[-1][0] == "done"


def test_no_observation_shows_the_input_or_the_answer_before_its_time() -> None:
    config = {"prices": [41, 87, 23, 65, 99, 12]}
    (played,) = check_wins(draft(STACK), config)
    told = "".join(observation for _, _, observation in played)
    assert not any(str(price) in told for price in config["prices"])
    assert {name for name, *_ in played} == {
        "count_prices",
        "is_stack_and_prices_entry_above_prices_at_i",
        "pop_stack_and_add_to_total",
        "append_to_stack",
        "read_total_minus_size_of_stack",
        "done",
    }


def test_what_cannot_be_done_now_is_said_and_changes_nothing() -> None:
    env = env_of(draft(STACK))()
    env.reset(seed=0, options={"prices": [3, 1, 2]})
    pop = call_text("pop_stack_and_add_to_total", {"i": 1})
    observation, *_, info = env.step(pop)
    assert observation.startswith("Error: not possible now: IndexError") and info["is_bad_call"]
    assert env.step(call_text("append_to_stack", {"i": -1}))[0] == "Error: it counts from 0"
    assert env.step(call_text("append_to_stack", {"i": 0}))[0] == '{"stack":"1 items"}'


HELPERS = """
OFFSET = 2

def is_near(value, other):
    return abs(value - other) <= OFFSET

def longest(values, limit):
    best = left = 0
    for right in range(len(values)):
        while values[right] - values[left] > limit:
            left += 1
        best = max(best, right - left + 1)
    return best

def solve(values, limit):
    best = longest(values, limit)
    for value in values:
        if is_near(value, limit):
            best += 1
    best += longest(values, limit + OFFSET)
    for right in range(best):
        best += right
    return best
"""


def test_helpers_with_loops_are_played_and_others_called() -> None:
    one = draft(HELPERS, ({"values": [1, 2], "limit": 1}, 7))
    (played,) = check_wins(one, {"values": [1, 4, 3, 8, 2, 2], "limit": 3})
    names = [name for name, *_ in played]
    assert "begin_longest" in names and names.count("set_best_and_set_left") == 0
    assert "is_is_near" in " ".join(names)


def test_a_name_of_several_functions_means_what_it_means_in_each() -> None:
    one = draft(HELPERS, ({"values": [1, 2], "limit": 1}, 7))
    rng = Random(3)
    check_wins(
        one,
        *(
            {"values": [rng.randint(0, 12) for _ in range(size)], "limit": rng.randint(0, 5)}
            for size in range(1, 9)
        ),
    )


REDUCTIONS = """
def solve(rows: list[list[int]], names: list[str]) -> list[int]:
    sizes = [len(row) for row in rows if row]
    longest = max(len(name) for name in names)
    if any(size > longest for size in sizes):
        return [sum(size * 2 for size in sizes), longest]
    if all(name for name in names):
        return sorted(size + len(names) for size in sizes)
    return []
"""


def test_what_is_reduced_in_one_expression_is_done_step_by_step() -> None:
    one = draft(REDUCTIONS)
    cases = [
        {"rows": [[1], [], [2, 3]], "names": ["a"]},
        {"rows": [[1, 2], [3]], "names": ["abc", "de"]},
        {"rows": [[1]], "names": ["", "abcd"]},
    ]
    for played in check_wins(one, *cases):
        assert sum(name.startswith("next_") for name, *_ in played) > 4


GRID = """
def solve(grid: list[list[int]]) -> int:
    best = 0
    for row in range(len(grid)):
        for column in range(len(grid[row])):
            for step in (1, 2):
                if column + step < len(grid[row]):
                    best = max(best, grid[row][column] + grid[row][column + step])
    return best
"""


def test_inner_loops_are_carried_out_in_one_go_where_the_draft_is_coarser() -> None:
    found = [one for one in draft_all(GRID) if isinstance(one, Draft)]
    config = {"grid": [[1, 5, 2, 8], [4, 4, 9, 1], [7, 0, 3, 3]]}
    sizes = [len(check_wins(one, config)[0]) for one in found]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True) and sizes[-1] < 10 < sizes[0]


EARLY = """
def solve(words: list[str], k: int) -> str:
    seen = {}
    count = 0
    while count < len(words):
        word = words[count]
        count += 1
        if word in seen:
            seen[word] += 1
            if seen[word] == k:
                return word
            continue
        seen[word] = 1
    else:
        if k > 5:
            return "too many"
    return "none"
"""


def test_texts_early_results_and_else_of_loops() -> None:
    words = ["oak", "elm", "oak", "ash", "elm", "oak"]
    (early, late, never) = check_wins(
        draft(EARLY),
        {"words": words, "k": 2},
        {"words": words, "k": 9},
        {"words": words, "k": 5},
    )
    assert [early[-1][1], late[-1][1], never[-1][1]] == [
        {"answer": "oak"},
        {"answer": "too many"},
        {"answer": "none"},
    ]


def test_a_player_is_not_told_a_whole_container() -> None:
    env = env_of(
        draft("def solve(a: list[int]) -> int:\n  b=[]\n  for x in a:\n    b=b+[x]\n  return b[0]")
    )()
    env.reset(seed=0, options={"a": [7, 8]})
    assert env.step(call_text("next_x", {}))[0] == "7"
    assert env.step(call_text("set_b", {}))[0] == '{"b":"1 items"}'


def test_a_variable_that_nobody_looks_at_has_a_name() -> None:
    source = (
        "def solve(a: list[list[int]]) -> int:\n  n = 0\n  for _, x in a:\n    n += x\n  return n"
    )
    one = draft(source)
    check_wins(one, {"a": [[1, 2], [3, 4]]})
    assert not screen(one.source)


REFUSED = {
    "nested function": "def solve(a: int) -> int:\n  def f(): return a\n  return f()",
    "try": "def solve(a: list[int]) -> int:\n  try: return a[0]\n  except IndexError: return 0",
    "nothing to do step by step": "def solve(a: list[int]) -> int:\n  return sum(a)",
    "recursion": (
        "def walk(a):\n  for x in a:\n    pass\n  y = step(a)\n  return y\n"
        "def step(a):\n  for x in a:\n    pass\n  y = walk(a)\n  return y\n"
        "def solve(a: list[int]) -> int:\n  y = walk(a)\n  return y"
    ),
    "no input": "def solve() -> int:\n  return 1",
    "name that is taken": "def json(a): return a\ndef solve(a: int) -> int: return json(a)",
    "not parsed": "def solve(a: int) -> int return a",
    "with": "def solve(a: int) -> int:\n  with a: pass\n  return a",
    "generator": "def solve(a: int) -> int:\n  yield a",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_compiled_is_said(reason: str) -> None:
    (only,) = draft_all(REFUSED[reason])
    assert isinstance(only, Refusal)
    assert only.reason == reason and only.problem == "some_task" and only.detail


def test_types_come_from_examples_where_nothing_declares_them() -> None:
    one = draft(
        "def solve(a, b, c):\n  n = 0\n  for x in a:\n    n += x\n  return n",
        ({"a": [], "b": "x", "c": [[1.5], []]}, 0),
        ({"a": [2], "b": "y", "c": []}, 2),
    )
    assert "a: list[int]\n    b: str\n    c: list[list[float]]" in one.source
    (refused,) = draft_all(
        "def solve(a, b): return 1", ({"a": 1, "b": {}}, 1), ({"a": "x", "b": {}}, 1)
    )
    assert isinstance(refused, Refusal) and refused.reason == "types that examples do not tell"


def test_every_tool_says_what_it_does_and_takes() -> None:
    tools = env_of(draft(GRID)).tools()
    assert len(tools) >= 4
    for tool in tools:
        function = tool["function"]
        assert function["description"]
        assert all(one["description"] for one in function["parameters"]["properties"].values())


def test_the_text_is_a_module_that_stands_alone() -> None:
    imported = {
        name.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(draft(HELPERS, ({"values": [1], "limit": 1}, 7)).source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"json", "random", "typing", "msgspec", "envpool", "envpool.env"}
