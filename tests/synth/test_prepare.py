"""A problem's inputs and answers: what is drawn, what is left out, and why a problem is refused."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from configs.synth import VerifyRecipe
from envpool import sandbox
from synth.court import Court
from synth.prepare import Prepared, prepare
from synth.problem import Problem, Test
from synth.records import Refusal

pytestmark = pytest.mark.skipif(bool(sandbox.lacking()), reason=str(sandbox.lacking()))

RECIPE = VerifyRecipe(configs=2, drawn=8, solve_timeout_s=2.0, memory_mb=256)
ADD = "def solve(a, k=0):\n    return sum(a) + (k or 0)\n"
DRAW = (
    "def generate(rng, level):\n"
    "    return {'a': [rng.randint(level, level + 5) for _ in range(2)], 'k': level}\n"
)
TESTS = (Test(args={"a": [1, 2]}, answer=3), Test(args={"a": [4], "k": None}, answer=4))


@pytest.fixture
async def court() -> AsyncIterator[Court]:
    async with Court(RECIPE) as court:
        yield court


def problem(**more: Any) -> Problem:
    return Problem(**{"id": "add", "statement": "Add.", "solutions": (ADD,), **more})


async def test_inputs_of_every_level_are_answered_in_turn(court: Court) -> None:
    recipe = VerifyRecipe(drawn=9, level=10, levels=3)
    found = await prepare(court, problem(generator=DRAW, tests=TESTS), recipe)
    assert isinstance(found, Prepared)
    assert found.levels[:3] == (10, 11, 12)
    assert [config["k"] for config in found.configs] == list(found.levels)
    assert list(found.answers) == [sum(one["a"]) + one["k"] for one in found.configs]
    assert len({str(one) for one in found.configs}) == len(found.configs) <= 9
    assert found.examples[:2] == list(TESTS)
    assert found.examples[2] == Test(args=found.configs[0], answer=found.answers[0])
    assert await prepare(court, problem(generator=DRAW, tests=TESTS), recipe) == found


async def test_inputs_are_made_after_the_tests_where_nothing_draws_them(court: Court) -> None:
    fails = "def solve(a, k=0):\n    return 6 // len(a)\n"
    tests = (Test(args={"a": [1, 2], "k": 1}, answer=3), Test(args={"a": [9] * 6}, answer=1))
    found = await prepare(court, problem(solutions=(fails,), tests=tests), RECIPE)
    assert isinstance(found, Prepared)
    assert found.configs[:2] == tuple(test.args for test in tests)
    assert len(found.configs) > RECIPE.drawn and set(found.levels) == {RECIPE.level}
    assert list(found.answers) == [6 // len(one["a"]) for one in found.configs]


async def test_inputs_that_the_original_fails_on_are_left_out(court: Court) -> None:
    odd = "def solve(a, k=0):\n    return 1 // (sum(a) % 2)\n"
    found = await prepare(court, problem(solutions=(odd,), generator=DRAW), RECIPE)
    assert isinstance(found, Prepared)
    assert 0 < len(found.configs) < RECIPE.drawn
    assert all(sum(one["a"]) % 2 for one in found.configs) and set(found.answers) == {1}


async def test_no_more_is_drawn_than_levels_share(court: Court) -> None:
    recipe = VerifyRecipe(drawn=8, level=10, levels=3)
    draw = "def generate(rng, level):\n    return {'a': [rng.randint(1, 10**9)], 'k': level}\n"
    found = await prepare(court, problem(generator=draw), recipe)
    assert isinstance(found, Prepared)
    assert found.levels == (10, 11, 12) * 3
    # The seed decides, and nothing else.
    other = await prepare(court, problem(generator=draw), msgspec.structs.replace(recipe, seed=1))
    assert isinstance(other, Prepared) and other.configs != found.configs


async def test_inputs_after_the_tests_follow_seed_and_level(court: Court) -> None:
    recipe = msgspec.structs.replace(RECIPE, level=3)
    found = [
        await prepare(court, problem(tests=TESTS), msgspec.structs.replace(recipe, seed=seed))
        for seed in (0, 0, 1)
    ]
    assert all(isinstance(one, Prepared) and set(one.levels) == {3} for one in found)
    assert found[0] == found[1] != found[2]


async def test_a_program_reads_and_prints(court: Court) -> None:
    program = "print(sum(map(int, input().split())))\n"
    tests = (Test(args={"stdin": "1 2"}, answer="3"), Test(args={"stdin": "4 5 6"}, answer="15"))
    found = await prepare(court, problem(solutions=(program,), kind="stdin", tests=tests), RECIPE)
    assert isinstance(found, Prepared)
    assert found.examples[2].args == {"stdin": "1 2"} and found.answers[0].strip() == "3"
    refused = await prepare(court, problem(solutions=(program,), tests=tests), RECIPE)
    assert isinstance(refused, Refusal) and refused.reason == "screen"
    assert '"kind": "stdin"' in refused.detail


async def test_others_need_not_answer_what_the_original_fails_on(court: Court) -> None:
    odd = "def solve(a, k=0):\n    return 1 // (sum(a) % 2)\n"
    more = {"solutions": (odd, "def solve(a, k=0):\n    return 1\n"), "generator": DRAW}
    found = await prepare(court, problem(**more), RECIPE)
    assert isinstance(found, Prepared) and 0 < len(found.configs) < RECIPE.drawn


async def test_long_values_are_cut_in_what_is_said(court: Court) -> None:
    tests = (Test(args={"a": [7] * 500}, answer=1),)
    found = await prepare(court, problem(tests=tests), RECIPE)
    assert isinstance(found, Refusal) and "..." in found.detail and len(found.detail) < 300


WRONG = "def solve(a, k=0):\n    return sum(a) + (sum(a) > 6)\n"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "wrong test": (
        {"tests": (Test(args={"a": [1]}, answer=2),)},
        "fails its own test",
        'on {"a":[1]} it gives 1, not 2',
    ),
    "raises on a test": (
        {"tests": (Test(args={"a": ["x"]}, answer=2),)},
        "raised",
        'on {"a":["x"]}: ',
    ),
    "endless": (
        {"solutions": ("def solve(a, k=0):\n    while True: pass\n",), "tests": TESTS[:1]},
        "timeout",
        "killed",
    ),
    "others say otherwise": (
        {"solutions": (ADD, ADD + "\n", WRONG), "generator": DRAW},
        "solvers disagree",
        "solution 3 on ",
    ),
    "another fails": (
        {"solutions": (ADD, "def solve(a, k=0):\n    return a['x']\n"), "generator": DRAW},
        "solvers disagree",
        "TypeError",
    ),
    "nothing is answered": (
        {"solutions": ("def solve(a, k=0):\n    return 1 // 0\n",), "generator": DRAW},
        "no answer",
        "ZeroDivisionError",
    ),
    "nothing to draw from": ({}, "no input", "neither tests nor a generator"),
    "evil solution": ({"solutions": (ADD, "import os\n" + ADD)}, "screen", "solution 2: "),
    "evil generator": ({"generator": "import os\n" + DRAW}, "screen", "generator: "),
    "evil checker": (
        {"checker": "import os\ndef check(answer, **args):\n    return True\n"},
        "screen",
        "checker: ",
    ),
    "generator raises": (
        {"generator": "def generate(rng, level):\n    return 1 // level\n"},
        "generator: raised",
        "ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_why_a_problem_is_refused(court: Court, what: str) -> None:
    more, reason, words = REFUSED[what]
    found = await prepare(court, problem(**more), RECIPE)
    assert isinstance(found, Refusal), found
    assert (found.problem, found.stage, found.reason) == ("add", "solve", reason)
    assert words in found.detail


async def test_a_checker_decides_where_several_answers_are_right(court: Court) -> None:
    checker = "def check(answer, a, k=0):\n    return answer in (sum(a), sum(a) + 1)\n"
    more = {"solutions": (ADD, WRONG), "generator": DRAW, "checker": checker}
    tests = (Test(args={"a": [9]}, answer=10),)
    assert isinstance(await prepare(court, problem(**more, tests=tests), RECIPE), Prepared)
