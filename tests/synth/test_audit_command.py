"""`launch.py synth audit`: which directories it takes, what it writes, and how it ends."""

from pathlib import Path

import msgspec
import pytest

from configs.load import ConfigError
from configs.synth import SynthRecipe
from envpool import sandbox
from synth.audit import main
from synth.audit_report import AuditReport
from synth.export import export
from synth.splits import Splits
from tests.synth import env_files, seeded

needs_sandbox = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

POOL = '''
"""Whose number is it?"""

from typing import Annotated

import msgspec
from msgspec import Meta

from _names import PREFIX
from envpool.env import ToolEnv, tool


class Given(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    values: Annotated[list[int], Meta(min_length=1)]


class Largest(ToolEnv):
    Config = Given
    Answer = int

    @classmethod
    def sample(cls, rng, level):
        return {"values": [rng.randint(0, 99) for _ in range(6)]}

    def setup(self, config):
        self._values = config.values
        self._place = 0

    def statement(self):
        return f"{PREFIX}: find the largest number."

    def reference(self):
        return max(self._values)

    @tool
    def show(self) -> list[int]:
        """Show the numbers."""
        return self._values

    @tool
    def go(self, steps: int) -> str:
        """Go on.

        Args:
            steps: How far.
        """
        self._place += steps
        return "gone"

    def oracle(self):
        import json

        yield "go", {"steps": 1}
        values = json.loads((yield "show", {}))
        yield "done", {"answer": max(values)}
'''


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of the factory, of which one environment was made from a mistaken solution."""
    out = tmp_path_factory.mktemp("results") / "result"
    wanted = ("card_window", "grain_resale", "cliff_watch_peaks")
    problems = {one.id: one for one in seeded.problems() if one.id in wanted}
    problems["grain_resale"] = seeded.seeded(problems["grain_resale"])
    made = [seeded.made_of(problems[id]) for id in wanted]
    splits = Splits(train=("cliff_watch_peaks", "grain_resale"), validation=(), test=wanted[:1])
    export(out, made=made, splits=splits, recipe=SynthRecipe())
    return out


def audited(capsys: pytest.CaptureFixture[str], *arguments: str) -> AuditReport:
    assert main([*arguments, "--json"]) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=AuditReport)


@needs_sandbox
def test_a_result_is_compared_with_the_problems_that_ship(
    result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = audited(capsys, str(result))
    assert (report.envs, report.tasks) == (3, 24)
    assert report.looked_at["references_wrong"] == report.looked_at["oracle_fails"] == 24
    assert {one.env for one in report.findings} == {"grain_resale"}
    wrong = report.audit.pop("references_wrong")
    assert wrong == len(report.findings) >= 4 and set(report.audit.values()) == {0}


@needs_sandbox
def test_the_table_says_the_same(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(result)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("3 environments, 24 tasks")
    (row,) = [line for line in lines if line.startswith("references_wrong ")]
    found, of, unit = row.split()[1:]
    assert int(found) >= 4 and (of, unit) == ("24", "tasks")
    assert sum(line.startswith("  grain_resale: the reference is") for line in lines) >= 4


@needs_sandbox
def test_a_pool_draws_its_own_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And may import what lies beside it."""
    (tmp_path / "_names.py").write_text("PREFIX = 'Today'\n")
    (tmp_path / "numbers_shown.py").write_text(POOL)
    assert main([str(tmp_path)]) == 0
    (row,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("references")]
    assert row.endswith("-       -  no solution known")
    report = audited(capsys, str(tmp_path))
    assert report.tasks == 8 and report.looked_at["references_wrong"] == 0
    assert {check: count for check, count in report.audit.items() if count} == {
        "observe_only_wins": 8
    }
    assert "show prints the whole hidden input" in report.findings[0].detail


@needs_sandbox
def test_a_pool_plays_the_tasks_that_it_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "_names.py").write_text("PREFIX = 'Today'\n")
    (tmp_path / "numbers_shown.py").write_text(POOL)
    rows = [{"env": "largest", "config": {"values": values}} for values in ([3, 9, 4], [], [7])]
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (tmp_path / "tasks.jsonl").write_bytes(lines)
    report = audited(capsys, str(tmp_path))
    assert report.tasks == 3
    # One is no configuration, and one is a single number: nothing that a tool could not show.
    assert (report.audit["faults"], report.audit["observe_only_wins"]) == (1, 1)


@needs_sandbox
def test_what_takes_for_ever_or_lies_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other environments are audited all the same."""
    (tmp_path / "sound.py").write_text(env_files.SOUND)
    for name, line in {
        "dies": "import os; os._exit(0)",
        "missing": "import no_such_module",
    }.items():
        (tmp_path / f"{name}.py").write_text(f"{line}\n{env_files.SOUND}")
    liar = "import sys\nfor m in list(sys.modules):\n    if m.endswith('_inside.examine'):\n"
    liar += "        sys.modules[m].examine = lambda *a, **k: {'findings': [['nonsense', 3]]}\n"
    (tmp_path / "liar.py").write_text(liar + env_files.SOUND)
    report = audited(capsys, str(tmp_path))
    faults = {one.env for one in report.findings if one.check == "faults"}
    assert faults == {"dies", "missing", "liar"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes one directory"),
        (["a", "b"], "takes one directory"),
        (["{tmp}/no_such"], "is no directory"),
        (["{tmp}"], "holds no environments"),
        (["{tmp}", "--solver", "x"], "no option --solver"),
        (["{tmp}", "--solvers"], "needs a file"),
    ],
)
def test_a_mistake_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    given = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    with pytest.raises(ConfigError, match=words):
        main(given)


def test_a_result_that_is_not_whole_is_refused(result: Path, tmp_path: Path) -> None:
    copy = tmp_path / "result"
    for path in sorted(result.rglob("*")):
        if path.is_file():
            (copy / path.relative_to(result)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(result)).write_bytes(path.read_bytes())
    (copy / "pool" / "test" / "card_window.py").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"not whole: pool/test/card_window\.py"):
        main([str(copy)])
    (copy / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="the factory was not done"):
        main([str(copy)])


SORTING = '''
"""Swaps have to be made before the answer, which is how many there were."""

import msgspec

from envpool.env import ToolEnv, at, tool


class Given(msgspec.Struct, frozen=True, kw_only=True):
    values: list[int]


class Swaps(ToolEnv):
    Config = Given
    Answer = int

    def setup(self, config):
        self._values, self._swaps = list(config.values), 0

    def statement(self):
        return "Sort the numbers, and tell how many swaps you made."

    def reference(self):
        return self._swaps

    def check(self, answer):
        return answer == self._swaps and self._values == sorted(self._values)

    @tool
    def compare_and_swap(self, place: int) -> str:
        """Swap a number with the next one if it is larger.

        Args:
            place: Of the first.
        """
        if at(self._values, place) > at(self._values, place + 1):
            self._values[place : place + 2] = self._values[place + 1], self._values[place]
            self._swaps += 1
            return "swapped"
        return "left"

    def oracle(self):
        swaps = 0
        for _ in range(4):
            for place in range(4):
                swaps += (yield "compare_and_swap", {"place": place}) == "swapped"
        yield "done", {"answer": swaps}
'''


@needs_sandbox
def test_what_is_right_may_depend_on_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No constant answer, although nothing was swapped at the beginning, and graded as it should be."""
    (tmp_path / "swaps.py").write_text(SORTING)
    rows = [{"env": "swaps", "config": {"values": [5, seed, 9, 2, 7]}} for seed in range(9)]
    lines = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (tmp_path / "tasks.jsonl").write_bytes(lines)
    report = audited(capsys, str(tmp_path))
    assert report.findings == [] and report.looked_at["type_brittle"] == 9
