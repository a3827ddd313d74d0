"""Shipped problems on lists, sorted data, stretches, stacks, queues and text: all solutions agree."""

import copy
import importlib.util
import inspect
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, get_type_hints

import msgspec
import pytest

from synth.problem import GENERATE, entry_of, parameters_of

PROBLEMS = Path(__file__).parents[2] / "synth" / "problems"
CONCEPTS = ("scanning", "search", "two_pointers", "stacks_queues", "strings")
FILES = [path for concept in CONCEPTS for path in sorted((PROBLEMS / concept).glob("*.py"))]
NUM_SEEDS = 40
# No answer may be right for more of the easiest inputs than this.
MAX_SHARE = 0.35


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipped_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def solutions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    members = inspect.getmembers(module, inspect.isfunction)
    return {name: member for name, member in members if name == "solve" or "solve_" in name}


def answers(module: ModuleType, arguments: dict[str, Any]) -> dict[str, Any]:
    """Each solution's answer; each gets arguments of its own, since it may change them."""
    return {
        name: solution(**copy.deepcopy(arguments))
        for name, solution in solutions_of(module).items()
    }


def check_arguments(module: ModuleType, arguments: dict[str, Any]) -> None:
    hints = get_type_hints(module.solve)
    assert list(arguments) == parameters_of(entry_of(inspect.getsource(module)))
    assert json.loads(json.dumps(arguments)) == arguments
    for name, value in arguments.items():
        msgspec.convert(value, hints[name], strict=True)


def check_answer(module: ModuleType, answer: Any) -> None:
    msgspec.convert(answer, get_type_hints(module.solve)["return"], strict=True)
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize("concept", CONCEPTS)
def test_concepts_have_their_problems(concept: str) -> None:
    assert len([path for path in FILES if path.parent.name == concept]) >= 5


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_problem_is_whole(path: Path) -> None:
    module = load(path)
    assert module.__doc__ is not None
    solutions = solutions_of(module)
    assert len(solutions) >= 2
    parameters = parameters_of(entry_of(path.read_text()))
    for name in solutions:
        assert parameters_of(entry_of(path.read_text(), name)) == parameters
    assert parameters_of(entry_of(path.read_text(), GENERATE)) == ["rng", "level"]
    for parameter in parameters:
        assert f"`{parameter}`" in module.__doc__
    assert 4 <= len(module.TESTS) <= 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_solutions_pass_the_examples(path: Path) -> None:
    module = load(path)
    for arguments, right in module.TESTS:
        check_arguments(module, arguments)
        check_answer(module, right)
        for name, answer in answers(module, arguments).items():
            assert answer == right, (name, arguments)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_solutions_agree_on_drawn_inputs(path: Path, level: int) -> None:
    module = load(path)
    for seed in range(NUM_SEEDS):
        arguments = module.generate(Random(seed), level)
        check_arguments(module, arguments)
        assert module.generate(Random(seed), level) == arguments
        given = answers(module, arguments)
        check_answer(module, given["solve"])
        assert all(answer == given["solve"] for answer in given.values()), (seed, given)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_answer_is_a_good_guess(path: Path) -> None:
    module = load(path)
    seen = Counter(
        json.dumps(module.solve(**module.generate(Random(seed), 0))) for seed in range(NUM_SEEDS)
    )
    assert seen.most_common(1)[0][1] <= MAX_SHARE * NUM_SEEDS, seen
