"""Drafts that pass, and drafts spoiled in one place, each refused for its own reason."""

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from drafts import INVERSIONS, INVERSIONS_SOLUTION, SOURCES, draft, problem

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth import oracle
from synth.court import Court
from synth.records import Draft, Made
from synth.verify import Verdict, verify

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

RECIPE = VerifyRecipe(
    configs=2,
    step_timeout_s=2.0,
    solve_timeout_s=2.0,
    memory_mb=256,
    alternatives=16,
    certificate_s=2.0,
)


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(RECIPE) as court:
        yield court


async def judged(court: Court, draft: Draft, **settings: Any) -> Verdict:
    recipe = msgspec.structs.replace(RECIPE, **settings)
    return await verify(court, draft, problem(draft.env), recipe)


async def made(court: Court, draft: Draft, **settings: Any) -> Made:
    verdict = await judged(court, draft, **settings)
    assert verdict.made is not None, verdict.refusals
    return verdict.made


async def reason(court: Court, draft: Draft, words: str = "", **settings: Any) -> str:
    """Why a draft is refused as a whole, or each of its configurations; `words` are in the detail."""
    verdict = await judged(court, draft, **settings)
    assert verdict.made is None
    last = next(
        (one for one in verdict.refusals if words and re.search(words, one.detail)),
        verdict.refusals[-1],
    )
    assert re.search(words, last.detail), verdict.refusals
    assert {one.stage for one in verdict.refusals} == {"verify"}
    assert {one.env for one in verdict.refusals} == {draft.env}
    return last.reason


# -- good ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SOURCES))
async def test_a_good_draft_passes(court: Court, name: str) -> None:
    found = await made(court, draft(name, count=8))
    assert len(found.tasks) == RECIPE.configs
    for task in found.tasks:
        assert task.trace[-1].name == "done"
        assert task.trace[-1].arguments == {"answer": task.answer}
        assert task.certificate is not None
        assert 3 <= task.certificate.calls < task.num_calls
        assert task.config in found.draft.configs
    changes = {"inversions": (), "rises": ("keep", "forward"), "ladder": ("swap",)}
    assert found.changes == changes[name]
    assert found.unused == (("equal",) if name == "inversions" else ())


async def test_verdicts_are_repeated_to_the_byte(court: Court) -> None:
    first, second = [await judged(court, draft("rises", count=6)) for _ in range(2)]
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


async def test_repeats_that_cannot_matter_are_dropped_from_traces(court: Court) -> None:
    found = await made(court, draft("inversions", count=8))
    for task in found.tasks:
        calls = [(move.name, str(move.arguments)) for move in task.trace]
        assert len(set(calls)) == len(calls)
        size = len(task.config["numbers"])
        assert task.num_calls == 1 + size * (size - 1) // 2 + 1


async def test_levels_stay_with_their_configurations(court: Court) -> None:
    one = draft("rises", count=4, levels=(0, 1, 2, 3))
    found = await made(court, one, configs=4)
    levels = {str(config): level for config, level in zip(one.configs, one.levels, strict=True)}
    assert all(levels[str(task.config)] == task.level for task in found.tasks)


async def test_independent_solvers_that_agree_pass(court: Court) -> None:
    other = "def solve(numbers):\n    n = len(numbers)\n    return sum(numbers[i] > numbers[j] for i in range(n) for j in range(i + 1, n))"
    slow = "def solve(numbers):\n    while True: pass"
    one = draft("inversions", count=3, solutions=(INVERSIONS_SOLUTION, other, slow))
    assert (await judged(court, one, solve_timeout_s=0.3)).made is not None


async def test_with_a_checker_other_answers_may_be_right(court: Court) -> None:
    """Of equal numbers either position will do."""
    spoils = (
        "    def reference(self) -> list[int]:",
        "    def check(self, answer: list[int]) -> bool:\n"
        "        if sorted(answer) != list(range(len(self._given))):\n"
        "            return False\n"
        "        found = [self._given[i] for i in answer]\n"
        "        return found == sorted(found)\n\n"
        "    def reference(self) -> list[int]:",
    )
    checker = (
        "def check(answer, numbers):\n    return [numbers[i] for i in answer] == sorted(numbers)"
    )
    last_first = "def solve(numbers):\n    return [-i for _, i in sorted((n, -i) for i, n in enumerate(numbers))]"
    configs = ({"numbers": [5, 3, 3, 9, 1]}, {"numbers": [7, 7, 2, 8, 60]})
    known = draft("ladder", spoils, configs=configs, checker=checker)
    solutions = (*known.solutions, last_first)
    verdict = await judged(court, msgspec.structs.replace(known, solutions=solutions))
    assert verdict.made is not None, verdict.refusals
    without = msgspec.structs.replace(known, solutions=solutions, checker="")
    assert await reason(court, without) == "solvers disagree"


# -- the solution ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [
        ({"solutions": (INVERSIONS_SOLUTION.replace("a > b", "a >= b"),)}, "tests", "not 1"),
        ({"solutions": ("def solve(numbers): return 1 // 0",)}, "tests", "ZeroDivision"),
        (
            {"solutions": (INVERSIONS_SOLUTION, "def solve(numbers): return 3")},
            "solvers disagree",
            "says 3",
        ),
        (
            {"solutions": (INVERSIONS_SOLUTION, "def solve(n): return 3")},
            "solvers disagree",
            "raised",
        ),
        ({"solutions": ()}, "no solution", ""),
        ({"solutions": ("import os\n" + INVERSIONS_SOLUTION,)}, "screen", "solution 0.*imports os"),
        ({"configs": ()}, "no configuration", ""),
        ({"configs": ({"numbers": [1]},)}, "config", "takes none"),
        ({"configs": ({"digits": [1, 2, 3, 4, 5, 6]},)}, "solution fails", ""),
        ({"env": "other"}, "env id", "inversions"),
    ],
)
async def test_what_is_wrong_around_the_source(
    court: Court, fields: dict[str, Any], name: str, words: str
) -> None:
    known = msgspec.structs.replace(draft("inversions", count=4), **fields)
    verdict = await verify(court, known, problem("inversions"), RECIPE)
    assert verdict.made is None
    assert verdict.refusals[-1].reason == name
    assert re.search(words, verdict.refusals[-1].detail), verdict.refusals[-1]


async def test_configurations_that_the_solution_cannot_do_are_left_out(court: Court) -> None:
    solution = INVERSIONS_SOLUTION.replace(
        "    return", "    if numbers[0] > 50: 1 // 0\n    return"
    )
    found = await judged(court, draft("inversions", count=10, solutions=(solution,)))
    assert found.made is not None
    assert all(task.config["numbers"][0] <= 50 for task in found.made.tasks)
    assert "solution raised" in {one.reason for one in found.refusals}


# -- the reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "other"),
    [
        ("inversions", "other > number", "other >= number + 1 and number"),
        ("inversions", "seen.append(number)", "seen.insert(0, number) if len(seen) < 4 else None"),
        ("inversions", "        return count\n", "        return min(count, 9)\n"),
        ("inversions", "seen, count = [], 0", "seen, count = [], 1"),
        ("rises", "if b > a)", "if b >= a - 3)"),
        ("rises", "pairs = zip(self._numbers,", "pairs = zip([50, *self._numbers],"),
        ("rises", "return sum(b for", "return sum(b - a for"),
        ("rises", "self._numbers[1:])\n", "self._numbers[1:-1])\n"),
        ("ladder", "(self._given[i], i)", "(-self._given[i], i)"),
        ("ladder", "sorted(range(len(self._given))", "sorted(range(len(self._given) - 1)"),
    ],
)
async def test_a_wrong_reference_is_found(court: Court, name: str, text: str, other: str) -> None:
    assert await reason(court, draft(name, (text, other), count=10)) == "reference"


# -- the environment -------------------------------------------------------------------------------

LOOK = "    @tool\n    def size"


def tool(
    name: str, body: str, signature: str = "self", returns: str = "int", args: str = ""
) -> str:
    """The text of another tool, before the first one."""
    text = f'    @tool\n    def {name}({signature}) -> {returns}:\n        """Do {name}.{args}"""\n'
    return text + "".join(f"        {line}\n" for line in body.splitlines()) + "\n" + LOOK


KEY = "\n\n        Args:\n            key: A key.\n        "


@pytest.mark.parametrize(
    ("spoil", "name", "words"),
    [
        (
            ('size = int((yield "size", {}))', "size = len(self._numbers)"),
            "oracle reaches inside",
            "self._numbers",
        ),
        (('size = int((yield "size", {}))', "size = 7"), "oracle loses", "answered"),
        (("count = 0\n", "count = 1\n"), "oracle loses", ""),
        (('yield "done", {"answer": count}', "return"), "oracle does not answer", "without done"),
        (
            ('yield "done", {"answer": count}', "while True: yield 'size', {}"),
            "oracle does not end",
            "",
        ),
        (("count = 0\n", "count = 0 // 0\n"), "oracle fails", "ZeroDivisionError"),
        (
            ("        count = 0\n", "        import math\n        count = 0\n"),
            "screen",
            "import inside",
        ),
        (("return len(self._numbers)", "return len(open('/etc/passwd').read())"), "screen", "open"),
        (("import msgspec\n", "import msgspec\nimport socket\n"), "screen", "imports socket"),
        (("return len(self._numbers)", "self._is_over = False"), "screen", "ToolEnv's own"),
        (('"""Count the positions, which are 0 and up."""', ""), "load", "no docstring"),
        (("            j: A position.\n", ""), "load", "argument j"),
        (("class Inversions", "1 / 0\nclass Inversions"), "load", "ZeroDivisionError"),
        (("return len(self._numbers)", "while True: pass"), "timeout", ""),
        (("        self._numbers = config.numbers", "        while True: pass"), "timeout", ""),
        (("return len(self._numbers)", "return len([0] * 10**9)"), "memory", ""),
        (("return len(self._numbers)", "raise SystemExit(3)"), "fault", "SystemExit"),
        (
            ("return len(self._numbers)", "self._f = lambda: 0\n        return len(self._numbers)"),
            "fault",
            "copied",
        ),
        (
            (LOOK, tool("total", "return {'a': 1}[key]", "self, key: str", args=KEY)),
            "fault",
            "KeyError",
        ),
        (
            (LOOK, tool("noisy", "self._n = 1\nraise ToolInputError('no')")),
            "bad call changes state",
            "noisy",
        ),
        ((LOOK, tool("answer", "return self.reference()")), "observer wins", "shown by the tools"),
        (
            (LOOK, tool("numbers", "return self._numbers", returns="list[int]")),
            "shortcut",
            "1 calls tell",
        ),
        (("Answer = int", "Answer = Any"), "grading", "got 0"),
        (
            (
                "    def statement",
                "    def check(self, answer: int) -> bool:\n        return abs(answer - self.reference()) < 2\n\n    def statement",
            ),
            "grading",
            "got 1",
        ),
        (
            ('return "How many', 'import random\n        return str(random.random()) + "How many'),
            "screen",
            "import inside",
        ),
        (
            ('return "How many', 'return str(self.np_random.random()) + "How many'),
            "not deterministic",
            "another seed",
        ),
        (
            (
                "return len(self._numbers)",
                "return len(self._numbers) + int(self.np_random.integers(2))",
            ),
            "not deterministic|oracle loses",
            "",
        ),
    ],
)
async def test_what_is_wrong_in_the_source(
    court: Court, spoil: tuple[str, str], name: str, words: str
) -> None:
    known = draft("inversions", spoil, count=4)
    assert re.fullmatch(name, await reason(court, known, words))


async def test_what_one_episode_leaves_to_the_next_is_found(court: Court) -> None:
    spoils = (
        ("class Inversions(ToolEnv):", "EPISODES = []\n\n\nclass Inversions(ToolEnv):"),
        (
            "        self._numbers = config.numbers",
            "        self._numbers = config.numbers\n        EPISODES.append(1)",
        ),
        ('return "How many', 'return f"{len(EPISODES)} How many'),
    )
    assert await reason(court, draft("inversions", *spoils)) == "not deterministic"


async def test_an_answer_that_never_changes_is_guessable(court: Court) -> None:
    spoils = (("return count\n", "return 12\n"), ('{"answer": count}', '{"answer": 12}'))
    known = draft("inversions", *spoils, solutions=("def solve(numbers): return 12",))
    verdict = await verify(court, known, None, RECIPE)
    assert verdict.made is None
    assert {one.reason for one in verdict.refusals} == {"guessable"}
    assert all("let inputs differ more" in one.detail for one in verdict.refusals)


async def test_calls_at_random_must_not_win(court: Court) -> None:
    """The tool wants a number, so that observing alone does not show its answer."""
    text = tool(
        "peek", "return self.reference()", "self, key: int", args=KEY.replace("A key", "Any number")
    )
    known = draft("inversions", (LOOK, text), ("    @tool\n    def equal", "    def equal"))
    assert await reason(court, known) == "shortcut"
    found = await reason(
        court, known, "calls at random won", min_certificate=1, max_random_rate=0.1
    )
    assert found == "random agent wins"


async def test_a_configuration_that_the_statement_prints_is_left_out(court: Court) -> None:
    known = draft("inversions", count=6)
    shown = str(known.configs[1]["numbers"])
    text = INVERSIONS.replace("at i than at j?", f"at i than at j? Of {shown} it is some.")
    found = await judged(court, msgspec.structs.replace(known, source=text))
    assert found.made is not None
    assert [one.config for one in found.refusals if one.reason == "statement shows"] == [
        known.configs[1]
    ]


async def test_a_repeat_that_matters_is_kept(court: Court) -> None:
    """The cursor's calls are equal, and each does something else."""
    found = await made(court, draft("rises", count=4))
    for task in found.tasks:
        moves = [move.name for move in task.trace]
        assert moves.count("forward") == len(task.config["numbers"])


def test_only_repeats_since_nothing_changed_are_dropped() -> None:
    moves = [oracle.Move(name=n, arguments={}, observation="") for n in "aabacad"]
    changed = [False, False, False, False, True, False, False]
    assert "".join(m.name for m in oracle.shortened(moves, changed)) == "abcad"
