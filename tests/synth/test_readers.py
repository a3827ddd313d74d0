"""`synth.readers`: what becomes of files and rows, and that nothing in them is executed."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from configs.load import ConfigError
from configs.synth import ProblemsRecipe
from synth.problem import Problem
from synth.problem import Test as Example
from synth.readers import read
from synth.records import Refusal

PAIRS = '''"""Count the pairs of equal numbers."""
from collections import Counter
import math

LIMIT = 3
UNUSED = 4
RNG_MAX = 9


def pairs(count):
    return math.comb(count, 2) if count < LIMIT else choose(count)


def choose(count):
    return count * (count - 1) // 2


def solve(numbers):
    return sum(pairs(count) for count in Counter(numbers).values())


def solve_brute(numbers):
    """Count again."""
    if not numbers:
        return 0
    first, *rest = numbers
    return rest.count(first) + solve_brute(rest)


def generate(rng, level):
    return {"numbers": [rng.randint(0, RNG_MAX) for _ in range(10 * (level + 1))]}


def check(answer, numbers):
    return answer == solve(numbers)


TESTS = [
    ({"numbers": [1, 1]}, 1),
    ({"numbers": []}, 0),
]
'''


def problems_in(
    tmp_path: Path, name: str, text: str, **recipe: Any
) -> tuple[list[Problem], list[Refusal]]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return read(ProblemsRecipe(paths=[str(path)], **recipe))


def rows_in(
    tmp_path: Path, *rows: dict[str, Any] | str, **recipe: Any
) -> tuple[list[Problem], list[Refusal]]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return problems_in(tmp_path, "rows.jsonl", "\n".join(lines) + "\n", **recipe)


def run(source: str, name: str, **args: Any) -> Any:
    """What a solution written in this file gives: tests run their own texts."""
    names: dict[str, Any] = {"__name__": "solution"}
    exec(compile(source, "solution", "exec"), names)
    return names[name](**args)


def row(**fields: Any) -> dict[str, Any]:
    good = {
        "id": "twice",
        "statement": "Double a number.",
        "solution": "def solve(number):\n    return 2 * number\n",
    }
    return {**good, **fields}


def test_a_file_gives_texts_that_stand_alone(tmp_path: Path) -> None:
    (problem,), refusals = problems_in(tmp_path, "counting/equal_pairs.py", PAIRS)
    assert not refusals
    assert (problem.id, problem.concept) == ("equal_pairs", "counting")
    assert problem.statement == "Count the pairs of equal numbers."
    assert problem.tests == (
        Example(args={"numbers": [1, 1]}, answer=1),
        Example(args={"numbers": []}, answer=0),
    )
    original, brute = problem.solutions
    for source in problem.solutions:
        assert run(source, "solve", numbers=[5, 5, 5, 5, 2, 2]) == 7
    assert "LIMIT = 3" in original and "UNUSED" not in original and "generate" not in original
    assert "import" not in brute and "solve_brute" not in brute
    assert "RNG_MAX = 9" in problem.generator and "def solve" not in problem.generator
    assert run(problem.checker, "check", answer=1, numbers=[3, 3]) is True


def test_what_is_reached_is_told_by_scope(tmp_path: Path) -> None:
    text = (
        '"""Say."""\nimport re as check\nimport string\n\ntotal = 7\n\n\n'
        "def helper(total, *, of=string.digits):\n    check = [total for total in of]\n    return check\n\n\n"
        "def solve(text):\n    return helper(text)\n"
    )
    (problem,), _ = problems_in(tmp_path, "a/say.py", text)
    (source,) = problem.solutions
    assert "import string" in source
    assert "total = 7" not in source and "import re" not in source


def test_decorators_stars_and_shared_lines_are_kept(tmp_path: Path) -> None:
    text = (
        '"""Say."""\nfrom __future__ import annotations\nimport functools; A = 1\nB = A + 1\n\n\n'
        "@functools.cache\ndef fib(n):\n    return n if n < B else fib(n - 1) + fib(n - 2)\n\n\n"
        "def solve(n):\n    return fib(n)\n"
    )
    (problem,), refusals = problems_in(tmp_path, "a/fib.py", text)
    assert not refusals
    (source,) = problem.solutions
    assert source.startswith("from __future__") and "@functools.cache" in source
    assert run(source, "solve", n=10) == 55


def test_a_renamed_solution_may_hold_any_text(tmp_path: Path) -> None:
    text = (
        '"""Say."""\n\n\ndef solve(n):\n    return n\n\n\n'
        'def solve_é(n):\n    é = "äö solve_é"; return solve_é(n - 1) if n else len(é) and 0\n'
    )
    (problem,), refusals = problems_in(tmp_path, "a/say.py", text)
    assert not refusals
    assert problem.solutions[1].count("solve_é") == 1  # in the text alone
    assert run(problem.solutions[1], "solve", n=3) == 0


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("def solve(:\n", "unparsable", "line 1"),
        ("def solve(n):\n    return n\n", "no statement", "docstring"),
        ('"""Say."""\n', "no solution", "def solve"),
        ('"""Say."""\ndef solve(*n):\n    return n\n', "odd parameters", "plain named ones"),
        (
            '"""Say."""\ndef solve(n):\n    return n\ndef solve_b(m):\n    return m\n',
            "other parameters",
            ":4: solve_b takes (m)",
        ),
        (
            '"""Say."""\ndef solve(n):\n    return n\ndef solve_b(n):\n    return solve(n)\n',
            "not independent",
            "helpers of its own",
        ),
        ('"""Say."""\ndef solve(n):\n    return n\nTESTS = [({"n": len}, 1)]\n', "bad test", ":4:"),
        ('"""Say."""\ndef solve(n):\n    return n\nTESTS = [({"m": 1}, 1)]\n', "bad test", "(n)"),
        ('"""Say."""\ndef solve(n):\n    return n\nTESTS = [({"n": {1}}, 1)]\n', "bad test", "set"),
        ('"""Say."""\ndef solve(n):\n    return n\nTESTS = [3]\n', "bad test", "pair"),
        (
            '"""Say."""\ndef solve(n):\n    return n\ndef generate():\n    return 1\n',
            "odd parameters",
            "(rng, level)",
        ),
    ],
)
def test_a_wrong_file_is_told_with_its_line(
    tmp_path: Path, text: str, reason: str, said: str
) -> None:
    good = tmp_path / "a" / "good.py"
    good.parent.mkdir()
    good.write_text(PAIRS)
    (tmp_path / "a" / "wrong.py").write_text(text)
    problems, (refusal,) = read(ProblemsRecipe(paths=[str(tmp_path / "a")]))
    assert [problem.id for problem in problems] == ["good"]
    assert (refusal.problem, refusal.stage, refusal.reason) == ("wrong", "read", reason)
    assert f"{tmp_path}/a/wrong.py:" in refusal.detail and said in refusal.detail


def test_nothing_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    act = f"open({str(mark)!r}, 'w').close()\n"
    text = f'"""Say."""\n{act}def solve(n=open({str(mark)!r}, "w")):\n    return n\n'
    problems_in(tmp_path, "a/acts.py", text)
    rows_in(
        tmp_path, row(solution=act + "def solve(n):\n    return n\n", tests=f"{act}assert solve(1)")
    )
    assert not mark.exists()


def test_rows_take_tests_in_every_form(tmp_path: Path) -> None:
    forms: list[Any] = [
        [{"args": {"number": 2}, "answer": 4}],
        [{"args": [2], "answer": 4}],
        [[[2], 4]],
        '[{"args": {"number": 2}, "answer": 4}]',
        "assert solve(2) == 4\nassert 4 == solve(number=2)\nassert solve(len('')) == 0",
    ]
    rows = [row(id=str(number), tests=tests) for number, tests in enumerate(forms)]
    problems, refusals = rows_in(tmp_path, *rows)
    assert not refusals
    assert [problem.id for problem in problems] == [f"p_{number}" for number in range(5)]
    for problem in problems:
        assert problem.tests == (Example(args={"number": 2}, answer=4),)
    assert problems[3].place == f"{tmp_path}/rows.jsonl:4"


def test_true_is_claimed_only_of_what_is_true_or_false(tmp_path: Path) -> None:
    test = "assert solve(1)\nassert not solve(0)\nassert solve(2) is True"
    (problem,), _ = rows_in(tmp_path, row(tests=test))
    assert {(one.args["number"], one.answer) for one in problem.tests} == {
        (1, True), (0, False), (2, True),
    }  # fmt: skip
    (problem,), _ = rows_in(tmp_path, row(tests="assert solve(1)\nassert solve(3) == 6"))
    assert problem.tests == (Example(args={"number": 3}, answer=6),)


@pytest.mark.parametrize(
    ("wrong", "reason", "said"),
    [
        ('{"id": "x", ', "bad JSON", "correct or remove it"),
        ("[1]", "bad JSON", "object"),
        (row(id=""), "no id", "id"),
        (row(statement=" "), "no statement", "words"),
        (row(solution=""), "no solution", "Python source"),
        (row(solution=None), "no solution", "Python source"),
        (row(solution="def solve(:"), "unparsable", "line 1"),
        (row(solution="x = 1"), "no entry", "`entry`"),
        (row(solution="print(int(input()) * 2)"), "no entry", '"kind": "stdin"'),
        (row(solution="def a(n):\n    return n\ndef b(n):\n    return n\n"), "no entry", "a, b"),
        (row(entry="twice"), "no entry", "it defines solve"),
        (row(solution="def solve(n):\n    return helper(n)\n"), "unparsable", "helper"),
        (row(solutions=["def solve(a, b):\n    return a\n"]), "unparsable", "(a, b)"),
        (row(tests=[3]), "bad test", "neither"),
        (row(tests=[[[1, 2], 4]]), "bad test", "2 arguments"),
        (row(tests=[[{"other": 1}, 4]]), "bad test", "'other'"),
        (row(tests={"a": 1}), "bad test", "no list"),
        (row(tests="assert ("), "bad test", "tests"),
        (row(tests=[[[2**70], 4]]), "bad test", "64 bits"),
        (row(kind="class"), "bad kind", "stdin"),
        (row(generator="def make():\n    return 1\n"), "unparsable", "generate"),
        (row(id="good"), "duplicate id", "rename"),
    ],
)
def test_a_wrong_row_is_told_and_the_others_go_on(
    tmp_path: Path, wrong: dict[str, Any] | str, reason: str, said: str
) -> None:
    problems, (refusal,) = rows_in(tmp_path, row(id="good"), wrong, row(id="last"))
    assert [problem.id for problem in problems] == ["good", "last"]
    assert (refusal.stage, refusal.reason) == ("read", reason)
    assert f"{tmp_path}/rows.jsonl:2" in refusal.detail and said in refusal.detail


def test_text_that_breaks_parsers_is_refused(tmp_path: Path) -> None:
    deep = "def solve(n):\n    return " + "(" * 5000 + ")" * 5000
    long = "def solve(n):\n    return " + "+".join(["n"] * 200_000)
    null = "def solve(n):\n    return '\0'"
    tests = "assert solve(" + "-" * 3000 + "1) == 1"
    rows = [row(id=str(i), solution=text) for i, text in enumerate((deep, long, null))]
    problems, refusals = rows_in(tmp_path, *rows, row(id="tested", tests=tests), row(id="good"))
    assert problems[-1].id == "good"
    assert {refusal.reason for refusal in refusals} <= {"unparsable", "bad test"}
    assert len(problems) + len(refusals) == 5


def test_fields_are_mapped_and_problems_chosen(tmp_path: Path) -> None:
    theirs = {
        "key": 7,
        "question": "Double.",
        "code": "def double(n):\n    return 2 * n\n",
        "topic": "sums",
    }
    fields = {"key": "id", "question": "statement", "code": "solution", "topic": "concept"}
    others = {**theirs, "key": "Half-Life 2", "topic": "halves"}
    problems, _ = rows_in(tmp_path, theirs, others, fields=fields)
    assert [(one.id, one.entry, one.concept) for one in problems] == [
        ("p_7", "double", "sums"),
        ("half_life_2", "double", "halves"),
    ]
    problems, _ = rows_in(tmp_path, theirs, others, fields=fields, only=["halves"])
    assert [one.id for one in problems] == ["half_life_2"]
    with pytest.raises(ConfigError, match=r"problems\.only.*did you mean halves"):
        rows_in(tmp_path, theirs, others, fields=fields, only=["halve"])
    with pytest.raises(ConfigError, match=r"problems\.fields\.key='ident'.*choose one of id"):
        rows_in(tmp_path, theirs, fields={"key": "ident"})


def test_paths_that_hold_nothing_are_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("a\n")
    for path, said in (("none", "does not exist"), ("empty", r"no \.py"), ("rows.csv", "parquet")):
        with pytest.raises(ConfigError, match=rf"problems\.paths: .*{path}.*{said}"):
            read(ProblemsRecipe(paths=[str(tmp_path / path)]))


def test_parquet_is_read_in_batches(tmp_path: Path) -> None:
    rows = [
        row(id=str(number), tests=[{"args": {"number": number}, "answer": 2 * number}])
        for number in range(600)
    ]
    rows[3]["tests"] = [{"args": {"other": 1}, "answer": 2}]
    rows[300]["solution"] = "def solve("
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    problems, refusals = read(ProblemsRecipe(paths=[str(path)]))
    assert len(problems) == 598
    assert problems[5].tests[0].args.keys() == {"number"}
    assert [refusal.detail.split(": ")[0] for refusal in refusals] == [f"{path}:4", f"{path}:301"]
    path.write_bytes(path.read_bytes()[:-8])
    problems, (refusal,) = read(ProblemsRecipe(paths=[str(path)]))
    assert not problems and refusal.reason == "bad parquet"


def test_a_file_of_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "image.py").write_bytes(b"\xff\xd8")
    _, (refusal,) = read(ProblemsRecipe(paths=[str(tmp_path / "image.py")]))
    assert refusal.reason == "unreadable" and "UTF-8" in refusal.detail


KOD = {
    "style": "instruct",
    "subset": "Drill",
    "question_id": "Drill_12",
    "question": "Write `add(a, b)`.",
    "solution": "def helper(x):\n    return x\n\ndef add(first, second=0):\n    return helper(first) + second\n",
    "test": (
        "from solution import add\nimport pytest\n\ndef test_add():\n    assert add(1, 2) == 3\n"
        "    assert add(first=4) == 4, 'alone'\n    for n in range(3):\n        assert add(n, n) == 2 * n\n"
        "    with pytest.raises(TypeError):\n        add('1', 2)\n"
    ),
}


def test_kodcode_rows(tmp_path: Path) -> None:
    info = [{"function_name": "add", "parameter_list": "(first, second=0)"}]
    named = {**KOD, "question_id": "Drill_13", "test_info": info}
    problems, refusals = rows_in(tmp_path, KOD, named, {**KOD, "question": ""}, format="kodcode")
    assert [refusal.reason for refusal in refusals] == ["no statement"]
    assert [problem.id for problem in problems] == ["kodcode_drill_12", "kodcode_drill_13"]
    for problem in problems:
        assert (problem.entry, problem.source, problem.kind) == ("add", "kodcode/Drill", "function")
        assert problem.tests == (
            Example(args={"first": 1, "second": 2}, answer=3),
            Example(args={"first": 4}, answer=4),
        )


PYTHON_2 = "print 1"


def apps_row(**fields: Any) -> dict[str, Any]:
    """A call-based record, with solutions in three styles and one of another language."""
    solutions = [
        PYTHON_2,
        "class Solution:\n    def near(self, nums: List[int], k: int) -> int:\n"
        "        return min(nums, key=lambda n: abs(n - k))\n",
        "def near(xs, target):\n    return sorted(xs, key=lambda x: abs(x - target))[0]\n",
        "def near(nums, k):\n    return near(nums, k, 1)\n    undefined_name\n",
        "def near(nums):\n    return nums[0]\n",
    ]
    cases = {"fn_name": "near", "inputs": [[[1, 5, 9], 6], [[2], 0]], "outputs": [[5], [2]]}
    good = {
        "problem_id": 31,
        "question": "Which number is nearest to k?",
        "solutions": json.dumps(solutions),
        "input_output": json.dumps(cases),
        "difficulty": "introductory",
        "url": "https://example.org/31",
        "starter_code": "class Solution:\n    def near(self, nums: List[int], k: int) -> int:\n        ",
    }
    return {**good, **fields}


def test_apps_rows_with_calls(tmp_path: Path) -> None:
    (problem,), refusals = rows_in(tmp_path, apps_row(), format="apps")
    assert not refusals
    assert (problem.id, problem.entry, problem.kind) == ("apps_31", "near", "function")
    assert problem.source == "apps https://example.org/31"
    assert problem.tests == (
        Example(args={"nums": [1, 5, 9], "k": 6}, answer=5),
        Example(args={"nums": [2], "k": 0}, answer=2),
    )
    assert len(problem.solutions) == 2
    for source in problem.solutions:
        assert run(source, "near", nums=[1, 5, 9], k=6) == 5
    assert "from typing import List" in problem.solutions[0]


@pytest.mark.parametrize(
    ("outputs", "arrow", "answers"),
    [
        ([[5], [2]], "List[int]", [[5], [2]]),
        ([[[5]], [[2]]], "List[int]", [[5], [2]]),
        ([5, 2], "int", [5, 2]),
        ([[True], [False]], "bool", [True, False]),
    ],
)
def test_apps_answers_in_a_list_of_one(
    tmp_path: Path, outputs: list[Any], arrow: str, answers: list[Any]
) -> None:
    cases = {"fn_name": "near", "inputs": [[[1], 6], ["[2]\n0"][0]], "outputs": outputs}
    starter = f"class Solution:\n    def near(self, nums: List[int], k: int) -> {arrow}:\n"
    record = apps_row(input_output=json.dumps(cases), starter_code=starter)
    (problem,), _ = rows_in(tmp_path, record, format="apps")
    assert [test.answer for test in problem.tests] == answers
    assert problem.tests[1].args == {"nums": [2], "k": 0}


def test_apps_rows_on_standard_input(tmp_path: Path) -> None:
    solutions = [PYTHON_2, "n = int(input())\nprint(n + 1)\n", "print(int(input()) + 1)"]
    cases = {"inputs": ["1\n", ["2", ""]], "outputs": ["2\n", ["3"]]}
    record = apps_row(solutions=json.dumps(solutions), input_output=json.dumps(cases))
    without = apps_row(problem_id=32, solutions="[]", input_output="")
    broken = apps_row(problem_id=33, solutions=json.dumps([PYTHON_2]), input_output="")
    (problem,), refusals = rows_in(tmp_path, record, without, broken, format="apps")
    assert problem.kind == "stdin" and len(problem.solutions) == 2
    assert problem.tests == (
        Example(args={"stdin": "1\n"}, answer="2\n"),
        Example(args={"stdin": "2\n"}, answer="3"),
    )
    assert [(one.problem, one.reason) for one in refusals] == [
        ("apps_32", "no solution"),
        ("apps_33", "unparsable"),
    ]


def test_taco_rows_have_concepts(tmp_path: Path) -> None:
    record = apps_row(name="Near it", skill_types="['Greedy algorithms', 'Bit manipulation']")
    del record["problem_id"]
    nameless = {**record, "name": None}
    problems, _ = rows_in(tmp_path, record, nameless, format="taco")
    assert [problem.id for problem in problems] == ["taco_near_it", "taco_2"]
    assert problems[0].concept == "bit_manipulation_and_greedy_algorithms"
