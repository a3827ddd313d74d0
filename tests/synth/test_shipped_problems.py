"""The problems that ship: each is whole, its solutions agree, and no answer is a good guess."""

import copy
import importlib.util
import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, get_args, get_origin

import pytest

from synth.problem import GENERATE, entry_of, parameters_of

PROBLEMS = Path(__file__).parents[2] / "synth" / "problems"
FILES = sorted(PROBLEMS.glob("*/*.py"))
LEVELS = range(4)
SEEDS = range(40)
# No answer may be right for more of the easiest inputs than this.
MAX_SHARE = 0.35

each_problem = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions(module: ModuleType) -> dict[str, Callable[..., Any]]:
    members = inspect.getmembers(module, inspect.isfunction)
    return {name: f for name, f in members if name == "solve" or name.startswith("solve_")}


def answers(module: ModuleType, args: dict[str, Any]) -> dict[str, Any]:
    """Each solution's answer; each gets arguments of its own, since it may change them."""
    return {name: solution(**copy.deepcopy(args)) for name, solution in solutions(module).items()}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type that JSON has, to the letter: a bool is no int."""
    if get_origin(hint) is list:
        return type(value) is list and all(fits(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        of_key, of_value = get_args(hint)
        is_of_kind = type(value) is dict and of_key is str
        return is_of_kind and all(type(k) is str and fits(v, of_value) for k, v in value.items())
    return hint in (int, float, bool, str) and type(value) is hint


def check_arguments(module: ModuleType, args: dict[str, Any]) -> None:
    parameters = inspect.signature(module.solve).parameters
    assert list(args) == list(parameters)
    assert all(fits(args[name], one.annotation) for name, one in parameters.items()), args
    assert json.loads(json.dumps(args)) == args


def test_there_are_five_of_each_concept_under_names_of_their_own() -> None:
    counts = Counter(path.parent.name for path in FILES)
    assert len(counts) == 15 and min(counts.values()) >= 5
    assert len({path.stem for path in FILES}) == len(FILES)


@each_problem
def test_a_problem_is_whole(path: Path) -> None:
    module, text = load(path), path.read_text(encoding="utf-8")
    parameters = parameters_of(entry_of(text))
    assert module.__doc__
    for name in parameters:
        assert f"`{name}`" in module.__doc__ or f"`{name}[" in module.__doc__
    found = solutions(module)
    assert len(found) >= 2
    assert len({str(inspect.signature(solution)) for solution in found.values()}) == 1
    assert parameters_of(entry_of(text, GENERATE)) == ["rng", "level"]


@each_problem
def test_every_solution_knows_the_worked_answers(path: Path) -> None:
    module = load(path)
    assert 4 <= len(module.TESTS) <= 6
    for args, right in module.TESTS:
        check_arguments(module, args)
        assert fits(right, inspect.signature(module.solve).return_annotation)
        assert answers(module, args) == dict.fromkeys(solutions(module), right), args


@each_problem
def test_solutions_agree_on_what_is_drawn_and_levels_grow(path: Path) -> None:
    module = load(path)
    returned = inspect.signature(module.solve).return_annotation
    sizes: list[int] = []
    for level in LEVELS:
        given: Counter[str] = Counter()
        size = 0
        for seed in SEEDS:
            args = module.generate(Random(seed), level)
            assert module.generate(Random(seed), level) == args
            check_arguments(module, args)
            size += len(json.dumps(args))
            found = answers(module, args)
            assert fits(found["solve"], returned)
            assert found == dict.fromkeys(found, found["solve"]), args
            given[json.dumps(found["solve"])] += 1
        assert level > 0 or max(given.values()) <= MAX_SHARE * len(SEEDS), given
        sizes.append(size)
    assert sizes[0] < sizes[-1]
