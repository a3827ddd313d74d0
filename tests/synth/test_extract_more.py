"""Solutions as people write them, and texts as nobody should: each is compiled rightly or refused in words."""

import ast
import copy
import textwrap
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from configs.synth import ExtractRecipe
from envpool import stepwise
from synth.extract.emit import class_name
from synth.extract.synthesizer import drafts
from synth.problem import Problem, Test
from synth.records import Draft, Refusal
from synth.screen import screen
from tests.synth.test_extract import check_wins, env_of

Draw = Callable[[Random], dict[str, Any]]

PLAIN = """
def solve(a: list[int]) -> int:
    n = 0
    for x in a:
        if x > LOW:
            n += x
    return n
"""


def numbers(rng: Random, least: int = 0, most: int = 7) -> list[int]:
    return [rng.randint(0, 9) for _ in range(rng.randint(least, most))]


def made(
    source: str,
    *examples: tuple[dict[str, Any], Any],
    name: str = "some_task",
    statement: str = "Work it out.",
    generator: str = "",
) -> list[Draft | Refusal]:
    problem = Problem(
        id=name,
        statement=statement,
        solutions=(textwrap.dedent(source),),
        tests=tuple(Test(args=args, answer=answer) for args, answer in examples),
        generator=generator,
    )
    return list(drafts(problem, problem.tests, ExtractRecipe(hint=""), configs=()))


def original(source: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(compile(textwrap.dedent(source), "solution", "exec"), names)
    return names["solve"]


# What a solution does that the compiler once did otherwise, and inputs for it.
WON: dict[str, tuple[str, Draw]] = {
    "an expression binds the name of the state": (
        """
        def solve(a: list[int], k: int) -> int:
            n = 0
            for x in a:
                n += len({s + k for s in range(x)}) + max(map(lambda s: s - k, a))
            return n
        """,
        lambda rng: {"a": numbers(rng, 1), "k": rng.randint(0, 3)},
    ),
    "a counter has a name of ours": (
        """
        def solve(a: list[int]) -> int:
            n = 0
            for s in range(len(a)):
                for self in range(s):
                    for json in range(self):
                        if a[s] > a[self] - json:
                            n += 1
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "a comprehension goes through what it names its items": (
        """
        def solve(a: list[list[int]]) -> int:
            n = 0
            for row in a:
                row = {row: row * 2 for row in row}
                if len(row) > 2:
                    n += len(row)
            return n
        """,
        lambda rng: {"a": [numbers(rng) for _ in range(4)]},
    ),
    "a lambda keeps what a name is now": (
        """
        def solve(a: list[int]) -> int:
            steps = []
            for i in range(len(a)):
                steps.append(lambda x, *, i=i: x * 2 + i)
            n = 1
            for one in steps:
                n = one(n)
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "a helper ends without a word": (
        """
        def find(a, wanted):
            for i in range(len(a)):
                if a[i] == wanted:
                    return i

        def solve(a: list[int], wanted: list[int]) -> int:
            n = 0
            for one in wanted:
                at = find(a, one)
                if at is None:
                    n -= 100
                else:
                    n += at
            return n
        """,
        lambda rng: {"a": numbers(rng), "wanted": numbers(rng, 2)},
    ),
    "a list grows while it is gone through": (
        """
        def solve(a: list[int]) -> int:
            n = 0
            for x in a:
                if x > 3:
                    a.append(x // 2)
                n += 1
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "numbers are counted from below 0": (
        """
        def solve(a: list[int], k: int) -> int:
            n = 0
            for i in range(k - 3, k):
                if 0 <= i < len(a):
                    n += a[i]
                for j in range(i, 2):
                    n -= j + a[0]
            for i in range(2, -k, -1):
                n = n * 2 - i
            return n
        """,
        lambda rng: {"a": numbers(rng, 1), "k": rng.randint(1, 4)},
    ),
    "items of a table are counted": (
        """
        def solve(a: list[int]) -> int:
            seen = {}
            for x in a:
                seen[x] = seen.get(x, 0) + 1
            n = 0
            for i, x in enumerate(seen):
                if seen[x] > 1:
                    n += i * x
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "what is added up changes in the same expression": (
        """
        def solve(a: list[int]) -> int:
            n = 0
            while a:
                n += a.pop() + sum(x for x in a)
            return n
        """,
        lambda rng: {"a": numbers(rng, 1)},
    ),
    "nobody looks at a variable, and another is ignored": (
        """
        def solve(a: list[int]) -> int:
            ignored = 0
            for _ in a:
                ignored += 1
            return ignored
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "variables and parameters are called like an environment's own": (
        """
        def count(step, tools):
            n = 0
            for x in tools:
                if x > step:
                    n += 1
            return n

        def solve(a: list[int], reset: int) -> int:
            step = 1
            done = 0
            for close in a:
                step += close
                if step > 10:
                    done += 1
                    step = reset
            return done + count(step, a)
        """,
        lambda rng: {"a": numbers(rng), "reset": rng.randint(1, 3)},
    ),
    "a helper is handed a starred list": (
        """
        def total(x, y):
            n = 0
            for one in x:
                n += one
            return n + y

        def solve(a: list[int]) -> int:
            n = 0
            for x in a:
                n += total(*[a, x])
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "a module of functions has one called add": (
        """
        import operator

        def solve(a: list[int]) -> int:
            n = 0
            for x in a:
                n = operator.add(n, x)
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "annotations are put off": (
        """
        from __future__ import annotations

        def solve(a: list[int]) -> int:
            n = 0
            for x in a:
                n += x
            return n
        """,
        lambda rng: {"a": numbers(rng)},
    ),
    "texts hold quotes, backslashes and lines": (
        r"""
        def solve(text: str) -> str:
            out = ""
            for one in text:
                if one in '\'"\\{}' or one == '\"\"\"' or one == "\n":
                    out += f"{one!r}\n  {one}\\"
                else:
                    out += 'say "no"\t'
            return out
        """,
        lambda rng: {"text": "".join(rng.choice("\"'\\{}ab\n") for _ in range(6))},
    ),
}


@pytest.mark.parametrize("what", WON)
def test_won_at_every_depth_on_every_input(what: str) -> None:
    source, draw = WON[what]
    rng = Random(what)
    configs = [draw(rng) for _ in range(30)]
    solve = original(source)
    examples = [(one, stepwise.result_of(solve, one)) for one in configs[:5]]
    for one in made(source, *examples):
        assert isinstance(one, Draft), one
        assert not screen(one.source)
        for config, played in zip(configs, check_wins(one, *copy.deepcopy(configs)), strict=True):
            assert played[-1][1] == {"answer": stepwise.result_of(solve, config)}


REFUSED = {
    "what outlasts an episode": (
        "global",
        "N = 0\ndef step():\n  global N\n  N += 1\n  return N\n"
        "def solve(a: list[int]) -> int:\n  n = 0\n  for x in a:\n    n += step()\n  return n",
    ),
    "a table of the module is filled": (
        "global",
        "SEEN = {}\ndef solve(a: list[int]) -> int:\n  n = 0\n  for x in a:\n"
        "    SEEN[x] = n\n    n += 1\n  return n",
    ),
    "a constant of ours": ("name that is taken", "Any = 3\n" + PLAIN),
    "an import under a name of ours": (
        "name that is taken",
        "from random import randint as json\n" + PLAIN,
    ),
    "a tree too deep": ("not parsed", PLAIN.replace("LOW", "-" * 900 + "x")),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compiled_has_a_reason(what: str) -> None:
    reason, source = REFUSED[what]
    (only,) = made(source)
    assert isinstance(only, Refusal) and only.reason == reason and only.detail


@pytest.mark.parametrize("name", ["none", "true", "some_task_input", "counter", "3_sum"])
def test_an_id_that_no_class_can_have_is_said(name: str) -> None:
    source = "from collections import Counter\nclass SomeTaskInputInput:\n  pass\n" + PLAIN
    (only,) = made(source, name=name)
    assert isinstance(only, Refusal) and only.reason == "name that is taken"


def test_imports_that_are_ours_as_well_are_no_clash() -> None:
    source = "import json\nfrom typing import Any\nfrom random import Random\nLOW = 2\n" + PLAIN
    assert isinstance(made(source)[0], Draft)


STATEMENTS = [
    'Say """ and \'\'\' and \\" {x} {0} }} { \\n. And \\',
    '"""\nimport os\n"""',
    'It ends with a "',
    "It ends with a \\",
    "Nothing\x00 and\x1b more\x85. Lines\u2028 and \u202e",
    "Half a letter: \ud800.",
    "Tabs\there\n\tand\r\nthere, " + "over a long line " * 20 + "end",
    "x" * 300 + "\\" * 100,
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_statement_is_told_as_it_was_written_and_is_never_code(statement: str) -> None:
    one = made("LOW = 2\n" + PLAIN, statement=statement)[0]
    assert isinstance(one, Draft), one
    env = env_of(one)()
    assert env.statement.__func__.__globals__["STATEMENT"] == statement  # type: ignore[attr-defined]
    tree = ast.parse(one.source)
    assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body) == 6
    check_wins(one, {"a": [1, 5, 3]})


@pytest.mark.parametrize("shift", range(6))
def test_a_long_text_in_a_condition_is_no_escape_in_a_docstring(shift: int) -> None:
    text = "'" + "a" * shift + "\\\\x\\\\N{" * 40 + "'"
    source = PLAIN.replace("x > LOW", f"str(x) not in {text}")
    one = made(source)[0]
    assert isinstance(one, Draft), one
    assert len(check_wins(one, {"a": [1, 5, 3]})[0]) > 6


def test_a_generator_whose_constants_mean_something_else_is_left_out() -> None:
    generator = (
        "{import_}{low}\ndef generate(rng, level):\n"
        "    return {{'a': [rng.randint(0, 2 * LOW) for _ in range(9)]}}\n"
    )
    solution = "LOW = 4\n" + PLAIN
    for low, import_, is_in in (
        ("LOW = 4", "", True),
        ("LOW = 1", "", False),
        ("", "from math import e as LOW\n", False),
    ):
        text = generator.format(low=low, import_=import_)
        one = made(solution, generator=text)[0]
        assert isinstance(one, Draft)
        assert ("def generate" in one.source) is is_in
        env = env_of(one)()
        env.reset(seed=0, options={"a": [2, 3, 5]})
        assert env.reference() == 5
    assert class_name("some_task") in one.source
