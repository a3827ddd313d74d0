"""The shipped problems of these concepts: their solutions agree with each other and with worked answers."""

import copy
import importlib.util
import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from synth.problem import entry_of, parameters_of

CONCEPTS = ["graphs", "grids", "intervals", "dynamic_programming", "number_theory"]
PROBLEMS = Path(__file__).parents[2] / "synth" / "problems"
FILES = [path for concept in CONCEPTS for path in sorted((PROBLEMS / concept).glob("*.py"))]
SEEDS = range(40)
# Of the draws of one level, how many may have one answer.
MAX_SHARE = 0.35

each_problem = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    names = [name for name in vars(module) if name == "solve" or name.startswith("solve_")]
    return {name: getattr(module, name) for name in names}


def answers(module: ModuleType, args: dict[str, Any]) -> dict[str, Any]:
    """What each solution answers; a solution may change its arguments."""
    return {name: solution(**copy.deepcopy(args)) for name, solution in solutions(module).items()}


def agrees(value: Any, hint: Any) -> bool:
    """Whether a value is of a type such as `dict[str, list[int]]`, and exactly so."""
    origin = getattr(hint, "__origin__", None)
    if origin is list:
        return type(value) is list and all(agrees(item, hint.__args__[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(
            type(key) is str and agrees(item, hint.__args__[1]) for key, item in value.items()
        )
    return type(value) is hint


def test_there_are_five_problems_of_each_concept() -> None:
    assert Counter(path.parent.name for path in FILES) == dict.fromkeys(CONCEPTS, 5)


@each_problem
def test_the_statement_names_every_parameter(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    statement = load(path).__doc__
    assert statement
    for parameter in parameters_of(entry_of(text)):
        assert f"`{parameter}`" in statement


@each_problem
def test_all_solutions_have_one_signature(path: Path) -> None:
    found = solutions(load(path))
    assert len(found) >= 2
    assert len({str(inspect.signature(solution)) for solution in found.values()}) == 1


@each_problem
def test_worked_answers_are_right(path: Path) -> None:
    module = load(path)
    hint = inspect.signature(module.solve).return_annotation
    assert 4 <= len(module.TESTS) <= 6
    for args, answer in module.TESTS:
        assert agrees(answer, hint)
        assert answers(module, args) == dict.fromkeys(solutions(module), answer), args


@each_problem
@pytest.mark.parametrize("level", [0, 1, 2])
def test_solutions_agree_on_what_is_drawn(path: Path, level: int) -> None:
    module = load(path)
    signature = inspect.signature(module.solve)
    for seed in SEEDS:
        args = module.generate(Random(seed), level)
        assert json.loads(json.dumps(args)) == args == module.generate(Random(seed), level)
        assert list(args) == list(signature.parameters)
        for name, parameter in signature.parameters.items():
            assert agrees(args[name], parameter.annotation), (name, args[name])
        found = answers(module, args)
        assert agrees(found["solve"], signature.return_annotation)
        assert found == dict.fromkeys(found, found["solve"]), args


@each_problem
def test_no_answer_is_a_good_guess(path: Path) -> None:
    module = load(path)
    drawn = [module.generate(Random(seed), 0) for seed in SEEDS]
    counts = Counter(json.dumps(module.solve(**args)) for args in drawn)
    assert counts.most_common(1)[0][1] <= MAX_SHARE * len(drawn)


@each_problem
def test_higher_levels_are_larger(path: Path) -> None:
    generate = load(path).generate
    sizes = [
        sum(len(json.dumps(generate(Random(seed), level))) for seed in SEEDS) for level in range(4)
    ]
    assert sizes == sorted(sizes)
    assert sizes[3] > sizes[0]
