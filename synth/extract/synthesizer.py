"""The synthesizer that needs no model: drafts of environments from a problem's own solutions."""

import ast
import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.synth import ExtractRecipe
from envpool.folder import env_id_of
from envpool.task import Config
from synth.extract import types
from synth.extract.compile import compile_solution
from synth.extract.emit import HEAD, class_name, config_name, write
from synth.extract.errors import NotExtractableError
from synth.extract.variables import bound_at_top
from synth.problem import Problem, ProblemError, Test, entry_of, parameters_of
from synth.records import Draft, Refusal

# Loops are carried out step by step down to this depth: the finest first.
DEPTHS = (9, 2, 1)
# How a syntax tree fails that is too deep, or a text that cannot be written down.
_UNFIT = (RecursionError, MemoryError, SyntaxError, ValueError, TypeError, KeyError)
STAGE = "extract"


def drafts(
    problem: Problem,
    examples: Sequence[Test],
    recipe: ExtractRecipe,
    *,
    configs: Sequence[Config],
    levels: Sequence[int] = (),
) -> Iterator[Draft | Refusal]:
    """Environments to try in turn until one passes, and what could not be made.

    `examples`: arguments with the original solution's results, which tell the types; `configs`: those
    that tasks shall be made of, with their `levels`.
    """
    for number, solution in enumerate(problem.solutions[: recipe.solutions]):
        seen: set[str] = set()
        for depth in DEPTHS:
            try:
                draft = _draft(
                    problem, number, solution, depth, examples, configs, levels, recipe.hint
                )
            # What nobody thought of in one solution must not end all others.
            except (NotExtractableError, ProblemError, *_UNFIT) as error:
                reason = getattr(error, "reason", "not parsed")
                detail = f"solution {number + 1}: {getattr(error, 'detail', '') or error}"
                yield Refusal(problem=problem.id, stage=STAGE, reason=reason, detail=detail)
                break
            if draft.source not in seen:
                seen.add(draft.source)
                yield draft


def _draft(
    problem: Problem,
    number: int,
    solution: str,
    depth: int,
    examples: Sequence[Test],
    configs: Sequence[Config],
    levels: Sequence[int],
    hint: str,
) -> Draft:
    if problem.kind != "function":
        raise NotExtractableError(
            "standard input",
            "it reads its input from text, and a function's arguments become the hidden state: give it as "
            "a function, or use llm.enabled=true",
        )
    function = entry_of(solution, problem.entry)
    parameters = parameters_of(function)
    fields = _fields(function, parameters, examples)
    answer = types.declared(function.returns) or types.seen(one.answer for one in examples)
    tree = ast.parse(solution)
    _check_names(tree, parameters, class_name(problem.id))
    compiled = compile_solution(
        tree,
        problem.entry,
        depth=depth,
        whole=frozenset(name for name, kind in fields.items() if kind == "int"),
        is_text=answer == "str",
    )
    source = write(
        problem.id,
        f"{problem.statement} {hint}".strip(),
        solution,
        problem.entry,
        compiled,
        fields=fields,
        answer=answer,
        generator=problem.generator if _go_together(solution, problem.generator) else "",
    )
    ast.parse(source)
    return Draft(
        # Not the problem's: of `apps_8` the class is `Apps8`, whose id is `apps8`.
        env=env_id_of(class_name(problem.id)),
        problem=problem.id,
        concept=problem.concept,
        origin="extract",
        source=source,
        configs=tuple(configs),
        levels=tuple(levels),
        # The one it was made of is among them: all must agree.
        solutions=problem.solutions,
        entry=problem.entry,
        checker=problem.checker,
        notes=(f"solution {number + 1}, loops to depth {depth}",),
    )


def _fields(
    function: ast.FunctionDef, parameters: Sequence[str], examples: Sequence[Test]
) -> dict[str, str]:
    """Types of the parameters, as text."""
    annotations: Mapping[str, Any] = {
        argument.arg: argument.annotation
        for argument in (*function.args.args, *function.args.kwonlyargs)
    }
    fields = {}
    for name in parameters:
        values = [one.args[name] for one in examples if name in one.args]
        fields[name] = types.declared(annotations[name]) or types.seen(values)
    return fields


def _check_names(tree: ast.Module, parameters: Sequence[str], env_class: str) -> None:
    """Raise NotExtractableError for names that the environment's own text uses."""
    if not parameters:
        raise NotExtractableError("no input", "the function takes no argument")
    ours, theirs = bound_at_top(ast.parse(HEAD)), bound_at_top(tree)
    names = {name for name, meaning in theirs.items() if ours.get(name) != meaning}
    if taken := sorted(names & {*_TAKEN, env_class, config_name(env_class)}):
        raise NotExtractableError("name that is taken", ", ".join(taken))
    if keyword.iskeyword(env_class) or not env_class.isidentifier():
        raise NotExtractableError("name that is taken", f"no class can be called {env_class}")
    if wrong := [name for name in parameters if name.startswith("_")]:
        raise NotExtractableError("name that is taken", ", ".join(wrong))


# Of the module that is written; a solution may use any other.
_TAKEN = frozenset(
    ("json", "msgspec", "s", "stepwise", "Oracle", "Random", "Any", "STATEMENT", "generate")
)


def _go_together(solution: str, generator: str) -> bool:
    """Whether solution and generator can stand in one module."""
    if not generator:
        return False
    first, second = (bound_at_top(ast.parse(text)) for text in (solution, generator))
    return all(first[name] == second[name] for name in first.keys() & second.keys())
