"""Mistakes in an environment of one's own are named before a run starts: file, line and cure.

README.md's own environment, with one mistake at a time.
"""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import launch
from configs.load import ConfigError
from configs.schema import PoolSection
from envpool.conformance import check_envs
from envpool.env import ToolEnv
from envpool.envs import BubbleSort, SumList, basics
from envpool.source import PoolSource
from tests.test_readme import block


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the pool, beside its recipe; a new module each time."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the recipe adds its directory
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_pool", None)
    yield tmp_path / "my_pool.py"
    sys.modules.pop("my_pool", None)


def spoil(pool: Path, old: str, new: str) -> int:
    """Write README.md's environment with one change; gives the line of the change."""
    text = block("python")
    assert text.count(old) == 1, old
    pool.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def refuse(pool: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `launch.py` says of a run with the pool, whose exit code is 2."""
    recipe = pool.with_name("mine.toml")
    recipe.write_text(block("toml"))
    assert launch.main([str(recipe), f"run.dir={pool.with_name('run')}", "--dry-run"]) == 2
    assert not pool.with_name("run").exists()
    message = capsys.readouterr().err
    assert message.startswith("error: pools.mine")
    assert len(message.splitlines()) == 1
    return message


SAMPLE = """        return {"numbers": [rng.randint(0, 99) for _ in range(rng.randint(2, 5 + 3 * level))]}"""
SETUP = """    def setup(self, config):
        self._numbers = config.numbers
"""
STATEMENT = """    def statement(self):
        return "What is the last number?"
"""
REFERENCE = """    def reference(self):  # the right answer
        return self._numbers[-1]
"""
RANDOM = 'import random\n        return {"numbers": [random.randint(0, 10**9)]}'
TOOLS = block("python")[block("python").index("    @tool") : block("python").index("envs =")]


@pytest.mark.parametrize(
    ("old", "new", "offset", "words"),
    [
        (
            '{"numbers": [rng',
            '{"nums": [rng',
            -2,
            ["LastNumber.sample()", "missing required field `numbers`", "fields numbers"],
        ),
        (SAMPLE, "        return []", -2, ["LastNumber.sample()", "gave [], which is no dict"]),
        (SAMPLE, "        return Numbers([1])", -2, ["sample()", "no dict", "fields of Numbers"]),
        (SAMPLE, "        return {'numbers': [{1j}]}", -2, ["sample()", "is no JSON"]),
        (SAMPLE, f"        {RANDOM}", -2, ["sample()", "the rng that it is given"]),
        (SAMPLE, "        return {'numbers': [1 // 0]}", 0, ["sample()", "ZeroDivisionError"]),
        (SETUP, "", None, ["LastNumber.setup()", "is missing: define it"]),
        ("self._numbers = config.numbers", "1 // 0", 0, ["LastNumber.setup()", "ZeroDivision"]),
        (STATEMENT, "", None, ["LastNumber.statement()", "is missing: define it"]),
        ('return "What is the last number?"', "return None", -1, ["statement() ", "return a str"]),
        ('"What is the last number?"', "' '", -1, ["LastNumber.statement()", "empty text"]),
        ('"What is the last number?"', "str(object())", -1, ["statement()", "self.np_random"]),
        (REFERENCE, "", None, ["LastNumber.reference()", "is missing: define it"]),
        ("return self._numbers[-1]", "return self._nums[-1]", 0, ["reference()", "'_nums'"]),
        ("self._numbers[-1]", "str(self._numbers)", -1, ["reference()", "set Answer = str in"]),
        ("return self._numbers[-1]", "return None", -1, ["reference()", "Answer is int", "int"]),
        ("self._numbers[-1]", "self._numbers.pop()", None, ["check()", "reference()", "wrong"]),
        (TOOLS, "", None, ["LastNumber", "no tool besides done", "@tool"]),
    ],
)
def test_a_mistake_is_named_before_anything_starts(
    old: str,
    new: str,
    offset: int | None,
    words: list[str],
    pool: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = spoil(pool, old, new)
    message = refuse(pool, capsys)
    assert all(word in message for word in ["env 'last_number'", *words]), message
    if offset is not None:
        assert f"my_pool.py:{line + offset}" in message, message
    else:
        assert "my_pool.py:" in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("index: int)", "index: itn)", ["my_pool.py:", "NameError: name 'itn' is not defined"]),
        ("index: int)", "index: complex)", ["LastNumber.get", "argument index", "type complex"]),
        ("index: int)", "index)", ["LastNumber.get", "argument index has no type"]),
        (
            "\n\n        Args:\n            index: Its position, from 0.\n        ",
            "",
            ["LastNumber.get", "argument index has no line", "add `index: "],
        ),
        (
            "index: Its position",
            "idx: Its position",
            ["LastNumber.get", "Args: describes idx", "its arguments are index"],
        ),
        (
            '        """How many numbers there are."""\n',
            "",
            ["LastNumber.length", "no docstring"],
        ),
        ("    Config = Numbers\n", "", ["class LastNumber", "has no Config", "msgspec.Struct"]),
        ("def length(self) -> int:", "def length(self) -> int", ["SyntaxError: expected ':'"]),
        ("def length(", "def done(", ["LastNumber.done", "is built in", "set Answer"]),
        ("    Config = Numbers", "    Config = Numbers\n    Answer = complex", ["Answer: type"]),
        ("import msgspec", "import msgspec, not_there", ["'not_there'", "install it"]),
    ],
)
def test_a_wrong_definition_is_named_with_its_line(
    old: str, new: str, words: list[str], pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(pool, old, new)
    message = refuse(pool, capsys)
    assert all(w in message for w in ["source='my_pool:envs'", "my_pool.py:", *words]), message


def source(env: type[ToolEnv]) -> PoolSource:
    return PoolSource(name="p", version="", envs={"a": env}, train=("a",), trusted=True)


def test_the_shipped_environments_pass_at_every_level() -> None:
    section = PoolSection(source="envpool.envs:basics", trusted=True)
    check_envs(PoolSource.load("basics", section), {env: {0, 1, 2} for env in basics})


def test_only_what_is_used_is_tried_and_at_its_level() -> None:
    class TooHard(SumList):
        @classmethod
        def sample(cls, rng: random.Random, level: int) -> dict[str, Any]:
            return {"numbers": [1 // (1 - level)]}

    check_envs(source(TooHard), {"a": {0}})
    check_envs(source(TooHard), {})
    with pytest.raises(
        ConfigError, match=r"TooHard\.sample\(\) at level 1 raised ZeroDivisionError"
    ):
        check_envs(source(TooHard), {"a": {0, 1}})


def test_an_author_who_judges_may_want_work_first_and_needs_no_reference() -> None:
    class Judged(SumList):
        reference = ToolEnv.reference

        def check(self, answer: int) -> bool:
            return answer == sum(self._numbers)

    check_envs(source(Judged), {"a": {0}})
    check_envs(source(BubbleSort), {"a": {0}})


def test_numbers_of_numpy_are_answers() -> None:
    class Array(SumList):
        def reference(self) -> Any:
            import numpy as np

            return np.int64(sum(self._numbers))

    check_envs(source(Array), {"a": {0}})


def test_global_chance_is_seeded_as_in_a_session_and_left_as_it_was() -> None:
    class Global(SumList):
        def statement(self) -> str:
            return f"Add {random.random()}."

    random.seed(7)
    before = random.getstate()
    check_envs(source(Global), {"a": {0}})
    assert random.getstate() == before


def test_an_environment_that_hangs_is_named_with_the_line_where_it_does() -> None:
    class Stuck(SumList):
        def setup(self, config: Any) -> None:
            while True:
                pass

    line = Stuck.setup.__code__.co_firstlineno
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ConfigError, match=r"Stuck\.setup\(\) raised TimeoutError") as raised:
        check_envs(source(Stuck), {"a": {0}}, timeout_s=0.05)
    assert any(f"conformance.py:{line + n}" in str(raised.value) for n in (1, 2))
    assert signal.getsignal(signal.SIGALRM) is before
