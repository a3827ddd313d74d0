"""Shipped problems on machines, stock, accounts, schedules and routes: every solution agrees."""

import ast
import copy
import importlib.util
import inspect
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args, get_origin

import msgspec
import pytest

ROOT = Path(__file__).parents[2] / "synth" / "problems"
CONCEPTS = ("simulation", "inventory", "ledger", "scheduling", "routing")
PATHS = [path for concept in CONCEPTS for path in sorted((ROOT / concept).glob("*.py"))]
LEVELS = (0, 1, 2)
SEEDS = 40
# Above that share one answer could be given without playing.
MAX_COMMON = 0.35

each_problem = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def load(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"problem_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(module: types.ModuleType) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in found if name == "solve" or name.startswith("solve_")}


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type that JSON has, to the letter: a bool is no int."""
    if get_origin(kind) is list:
        return type(value) is list and all(fits(item, get_args(kind)[0]) for item in value)
    if get_origin(kind) is dict:
        of_key, of_value = get_args(kind)
        is_fine = all(fits(k, of_key) and fits(v, of_value) for k, v in value.items())
        return type(value) is dict and of_key is str and is_fine
    return kind in (int, float, bool, str) and type(value) is kind


def answer(solution: Callable[..., Any], args: dict[str, Any]) -> Any:
    return solution(**copy.deepcopy(args))


def test_there_are_five_problems_of_each_concept_under_names_of_their_own() -> None:
    counts = Counter(path.parent.name for path in PATHS)
    assert all(counts[concept] >= 5 for concept in CONCEPTS)
    stems = Counter(path.stem for path in ROOT.glob("*/*.py"))
    assert all(stems[path.stem] == 1 for path in PATHS)


@each_problem
def test_a_statement_names_every_parameter(path: Path) -> None:
    statement = ast.get_docstring(ast.parse(path.read_text()))
    assert statement is not None
    module = load(path)
    for name in inspect.signature(module.solve).parameters:
        assert f"`{name}`" in statement or f"`{name}[" in statement


@each_problem
def test_solutions_have_one_signature(path: Path) -> None:
    found = solutions(load(path))
    assert len(found) >= 2
    assert len({str(inspect.signature(solution)) for solution in found.values()}) == 1


@each_problem
def test_every_solution_knows_the_tests_answers(path: Path) -> None:
    module = load(path)
    assert 4 <= len(module.TESTS) <= 6
    for args, expected in module.TESTS:
        given = {name: answer(s, args) for name, s in solutions(module).items()}
        assert given == dict.fromkeys(given, expected), args


@each_problem
@pytest.mark.parametrize("level", LEVELS)
def test_every_solution_agrees_on_generated_arguments(path: Path, level: int) -> None:
    module = load(path)
    parameters = inspect.signature(module.solve).parameters
    returned = inspect.signature(module.solve).return_annotation
    answers: Counter[bytes] = Counter()
    for seed in range(SEEDS):
        args = module.generate(Random(seed), level)
        assert args == module.generate(Random(seed), level)
        assert list(args) == list(parameters)
        assert all(fits(args[name], p.annotation) for name, p in parameters.items()), args
        assert msgspec.json.decode(msgspec.json.encode(args)) == args
        expected = answer(module.solve, args)
        assert fits(expected, returned)
        for name, solution in solutions(module).items():
            assert answer(solution, args) == expected, (name, args)
        answers[msgspec.json.encode(expected)] += 1
    [[_, common]] = answers.most_common(1)
    assert level > 0 or common <= MAX_COMMON * SEEDS
