"""The prompts: texts in `prompts/`, each with a version in its first line, and what is filled into them.

A placeholder is `{{name}}`. The versions are part of what a reply is cached under and of a draft's notes,
so that a reply to an older prompt is never taken for one to the newer.
"""

import ast
import hashlib
import json
import re
from pathlib import Path

import msgspec

from synth.llm.replies import Block, fields_of
from synth.problem import Problem, entry_of

FOLDER = Path(__file__).parent / "prompts"

# Configurations that a reply is asked for.
NUM_CONFIGS = 10
# Examples shown with a problem, and the longest JSON of one that is shown.
_NUM_TESTS = 3
_MAX_TEST = 500

# What later samples of a problem are dressed as, so that they differ in more than their numbers.
THEMES = (
    "a warehouse or a port",
    "an office: mail, calendars, approvals",
    "a workshop, a laboratory or a plant",
    "a shop, its accounts and its stock",
    "a railway, an airport or a delivery service",
    "servers, networks, permissions and logs",
    "a library, a school or a hospital",
    "a farm, a kitchen or a garden",
)

_FIRST_LINE = re.compile(r"version: (\d+)\n\n")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


class Prompts(msgspec.Struct, frozen=True, kw_only=True):
    """The texts, without their version lines."""

    environment: str
    example: str
    solver: str
    repair: str
    versions: str
    """Version of each, e.g. `environment 1, example 1, solver 1, repair 1`."""

    @classmethod
    def load(cls) -> "Prompts":
        """Read the shipped ones. Blocks: not for an event loop."""
        names = ("environment", "example", "solver", "repair")
        files = ("environment.md", "example.md", "solver.md", "repair.md")
        texts, versions = {}, []
        for name, file in zip(names, files, strict=True):
            text = (FOLDER / file).read_text(encoding="utf-8")
            match = _FIRST_LINE.match(text)
            if match is None:
                raise RuntimeError(f"{FOLDER / file}: its first line must be `version: N`")
            texts[name] = text[match.end() :]
            versions.append(f"{name} {match[1]}")
        return cls(**texts, versions=", ".join(versions))

    def ask_environment(self, problem: Problem, sample: int) -> str:
        """The first message of a sample's conversation; samples after the first are given a theme."""
        return _fill(
            self.environment,
            theme=_theme(problem, sample),
            parameters=", ".join(fields_of(problem)),
            example=self.example,
            count=str(NUM_CONFIGS),
            statement=problem.statement.strip(),
            signature=_signature(problem),
            solution=problem.solutions[0].strip(),
            checker=_checker(problem),
            tests=_tests(problem),
        )

    def ask_solver(self, problem: Problem) -> str:
        """The message that asks for a solver; it has the statement and nothing of any solution's body."""
        if problem.kind == "stdin":
            interface = "A program that reads standard input and prints the answer."
        else:
            interface = f"A module with this function:\n\n    {_signature(problem)}"
            if problem.tests:
                shape = _shown(problem.tests[0].args)
                kind = type(problem.tests[0].answer).__name__
                interface += f"\n\nArguments look like {shape}. It returns JSON: {kind}."
        return _fill(
            self.solver,
            statement=problem.statement.strip(),
            interface=interface,
            more_imports=", `sys`" if problem.kind == "stdin" else "",
        )

    def ask_repair(self, message: str, blocks: tuple[Block, ...]) -> str:
        wanted = " and ".join(f'"```{block}"' for block in blocks)
        return _fill(self.repair, message=message.strip(), blocks=wanted)


def _fill(text: str, **values: str) -> str:
    """`text` with its placeholders replaced at once, so that what is filled in is never looked into."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], text)


def _theme(problem: Problem, sample: int) -> str:
    if not sample:
        return ""
    start = int(hashlib.sha256(problem.id.encode()).hexdigest(), 16)
    return f" Set it in: {THEMES[(start + sample) % len(THEMES)]}."


def _signature(problem: Problem) -> str:
    """The head of the original solution's function, with its annotations and without its body."""
    if problem.kind == "stdin":
        return "(the module is a program: it reads `stdin` and prints the answer, a str)"
    function = entry_of(problem.solutions[0], problem.entry)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"def {function.name}({ast.unparse(function.args)}){returns}"


def _checker(problem: Problem) -> str:
    """What is right, where that is more than the solution's own answer."""
    if not problem.checker:
        return ""
    return (
        "\nMore than one answer is right. This decides, and `check` of the environment must say the same:\n\n"
        f"~~~\n{problem.checker.strip()}\n~~~\n"
    )


def _tests(problem: Problem) -> str:
    """Examples for who writes the environment: shape and size of arguments."""
    shown = [
        f"- {_shown(test.args)} gives {_shown(test.answer)}" for test in problem.tests[:_NUM_TESTS]
    ]
    return "\n# Examples\n\n" + "\n".join(shown) + "\n" if shown else ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_TEST else f"{text[:_MAX_TEST]}..."
