"""What the text of untrusted code may hold."""

from pathlib import Path

import pytest

import envpool.envs
from synth.screen import Role, screen

ENV = """
import heapq
from collections import deque
from random import Random
import msgspec
from envpool.env import Oracle, ToolEnv, ToolInputError, at, tool

class Given(msgspec.Struct, frozen=True, kw_only=True):
    numbers: list[int]
    def __post_init__(self) -> None:
        if not self.numbers:
            raise ValueError("numbers is empty")

class Some(ToolEnv):
    '''Answer: the sum.'''
    Config = Given
    Answer = int
    @classmethod
    def sample(cls, rng: Random, level: int):
        return {"numbers": [rng.randrange(9)]}
    def setup(self, config: Given) -> None:
        self._numbers = config.numbers
        self._heap = []
    def statement(self) -> str:
        return "Sum."
    def reference(self) -> int:
        return sum(self._numbers)
    @tool
    def look(self, index: int) -> int:
        '''Look.

        Args:
            index: Where.
        '''
        heapq.heappush(self._heap, getattr(self, "seen", 0))
        return at(self._numbers, index)
    def oracle(self) -> Oracle:
        yield "done", {"answer": 0}
"""


def test_an_ordinary_environment_passes() -> None:
    assert screen(ENV) == ""


@pytest.mark.parametrize("name", ["guess_number", "sum_list", "price_total", "bubble_sort"])
def test_our_own_environments_pass(name: str) -> None:
    folder = Path(str(envpool.envs.__file__)).parent
    source = (folder / f"{name}.py").read_text()
    # They share modules of ours, which a draft may not.
    found = screen(source)
    assert found == "" or "imports envpool" in found


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import os", "imports os"),
        ("import sys", "imports sys"),
        ("import os.path as p", "imports os.path"),
        ("from subprocess import run", "imports subprocess"),
        ("from . import x", "sibling"),
        ("from math import *", "sibling or \\*"),
        ("import envpool.env", "imports envpool: write"),
        ("from envpool.pool import EnvPool", "imports envpool"),
        ("from envpool.env import seed_globals", "imports seed_globals"),
        ("from dataclasses import sys", "imports sys of dataclasses"),
        ("from random import _os", "imports _os"),
        ("import dataclasses\nx = dataclasses.sys", r"\.sys, a module"),
        ("import random\nx = random._os", r"\._os, private"),
        ("import enum as e\nx = e.bltns", "bltns"),
        ("x = eval('1')", "uses eval"),
        ("x = [exec]", "uses exec"),
        ("open('x')", "uses open"),
        ("__import__('os')", "uses __import__"),
        ("x = __builtins__", "uses __builtins__"),
        ("print(1)", "uses print"),
        ("x = ().__class__", r"\.__class__"),
        ("x = (lambda: 0).__globals__", "__globals__"),
        ("x = (i for i in ()).gi_frame", "gi_frame"),
        ("getattr(x, '__class__')", "private name"),
        ("getattr(x, 'a' + 'b')", "without a name"),
        ("setattr(x, name, 1)", "without a name"),
        ("g = getattr", "hands on getattr"),
        ("import operator\nx = operator.attrgetter('a.__class__')", "private name"),
        ("from operator import attrgetter\nx = map(attrgetter, [1])", "hands on attrgetter"),
        ("x = other._hidden", r"\._hidden, private"),
        ("x = self.other._hidden", r"\._hidden, private"),
        ("import string\nstring.Formatter()", "Formatter"),
        ("import typing\ntyping.get_type_hints(x)", "get_type_hints"),
        ("x: \"__import__('os')\" = 1", "annotation calls|uses __import__"),
        ("def f(a: 'open(1)'): pass", "annotation calls"),
        ("from datetime import datetime\nx = datetime.now()", "clock"),
        ("import datetime\nx = datetime.date.today()", "clock"),
        ("import random\nx = random.SystemRandom()", "SystemRandom"),
        ("x = id(x)", r"id\(\)"),
        ("class A(metaclass=M): pass", "metaclass"),
        ("class A:\n    def __getattribute__(self, n): pass", "__getattribute__"),
        ("class A:\n    def __del__(self): pass", "__del__"),
        ("def f():\n    import math", "import inside"),
        ("class A(ToolEnv):\n    def step(self, a): pass", "defines step"),
        ("class A(ToolEnv):\n    reset = 1", "defines reset"),
        ("class A(ToolEnv):\n    def done(self, a): pass", "defines done"),
        ("class A(ToolEnv):\n    def __init__(self): pass", "defines __init__"),
        ("class A(ToolEnv):\n    def f(self): self._is_over = False", "ToolEnv's own"),
        ("x = (", "cannot be parsed"),
    ],
)
def test_what_has_no_place_is_named_with_its_line(line: str, words: str) -> None:
    found = screen(ENV + line + "\n")
    _matches(words, found)
    first = ENV.count("\n") + 1
    assert int(found.partition(":")[0].removeprefix("line ")) >= first


@pytest.mark.parametrize(
    ("source", "role", "words"),
    [
        ("import sys\nsys.setrecursionlimit(10**4)\ndef solve(n): return n", "solution", ""),
        ("def solve(n):\n    import heapq\n    return n", "solution", ""),
        ("import sys\nprint(input(), sys.stdin.buffer.readline())\nexit()", "program", ""),
        ("from sys import stdin\nprint(stdin.read())", "program", ""),
        ("def solve(n):\n    print(n)", "solution", "uses print"),
        ("import sys\nx = sys.modules", "solution", "uses sys.modules"),
        ("import sys\nx = sys._getframe()", "program", "_getframe"),
        ("from sys import modules", "program", "imports modules of sys"),
        ("import os", "program", "imports os"),
        ("P = namedtuple('P', 'a')\nx = P(1)._replace(a=2)", "solution", ""),
        ("class N:\n    def __lt__(self, o): return self._k < o._k", "solution", "private"),
    ],
)
def test_solutions_have_rules_of_their_own(source: str, role: Role, words: str) -> None:
    found = screen(source, role=role)
    assert found == "" if not words else words in found


def test_no_text_is_a_crash() -> None:
    assert "cannot be parsed" in screen("x = 1\0")
    assert "cannot be parsed" in screen("x = " + "(" * 5000 + ")" * 5000)


def _matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
