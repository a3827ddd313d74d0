r"""Problems in: from Python files, JSONL and parquet, in this factory's shape or one of published sets.

    paths -> files -> rows -> Problem
                          \-> Refusal with file, line, what is wrong and the cure; the others go on

Nothing that is read is executed: solutions are text, and of that the syntax tree.
"""

import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import msgspec

from configs.load import ConfigError
from configs.synth import ProblemsRecipe
from synth.cutting import parse
from synth.literals import few
from synth.problem import CHECK, GENERATE, Problem, ProblemError, entry_of
from synth.problem_files import read_file
from synth.reading import Unread, rows
from synth.records import Refusal
from synth.shapes import NATIVE_FIELDS, SHAPES, Row, entry_name, tests_of
from synth.solutions import MAX_SOLUTIONS, parameters_in, standing_alone

STAGE = "read"
# The problems that come along, which are meant where no path is given; and a word for them.
SHIPPED, SHIPPED_WORD = Path(__file__).parent / "problems", "shipped"
_SHIPPED_SOURCE, _SHIPPED_LICENCE = "millrace", "Apache-2.0"
_DATA = (".jsonl", ".parquet")

Found = Problem | Refusal


def read(recipe: ProblemsRecipe) -> tuple[list[Problem], list[Refusal]]:
    """The problems of a recipe in order, and what was no problem. Blocks.

    Raises ConfigError for paths, fields and names in `only` that are not there.
    """
    for theirs, ours in recipe.fields.items():
        if ours not in NATIVE_FIELDS:
            raise ConfigError(
                f"problems.fields.{theirs}={ours!r} is no field of a problem: choose one of "
                f"{', '.join(NATIVE_FIELDS)}"
            )
    problems: dict[str, Problem] = {}
    refusals: list[Refusal] = []
    with warnings.catch_warnings():
        # Of the parser, about texts that are not ours.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in [file for name in recipe.paths or [SHIPPED_WORD] for file in _files(name)]:
            for found in _read(path, recipe):
                if isinstance(found, Problem) and found.id in problems:
                    first = problems[found.id].place
                    detail = f"{found.place}: the id {found.id!r} is that of {first}: rename one"
                    found = Refusal(
                        problem=found.id, stage=STAGE, reason="duplicate id", detail=detail
                    )
                if isinstance(found, Problem):
                    problems[found.id] = found
                else:
                    refusals.append(found)
    return _chosen(list(problems.values()), recipe.only), refusals


def _files(name: str) -> list[Path]:
    """The files behind one of the recipe's paths; raises ConfigError where there are none."""
    path = SHIPPED if name == SHIPPED_WORD else Path(name).expanduser()
    if not path.exists():
        raise ConfigError(f"problems.paths: {name!r} does not exist (looked for {path.absolute()})")
    if path.is_file():
        if path.suffix not in (".py", *_DATA):
            raise ConfigError(
                f"problems.paths: {name!r} is neither .py, .jsonl nor .parquet: name one of these, or "
                "a directory of .py files"
            )
        return [path]
    found = sorted(
        file
        for file in path.rglob("*.py")
        if not any(part.startswith(("_", ".")) for part in file.relative_to(path).parts)
    )
    if not found:
        raise ConfigError(
            f"problems.paths: {name!r} holds no .py file: name what holds the problems"
        )
    return found


def _read(path: Path, recipe: ProblemsRecipe) -> Iterator[Found]:
    if path.suffix == ".py":
        is_ours = path.is_relative_to(SHIPPED)
        source, licence = (_SHIPPED_SOURCE, _SHIPPED_LICENCE) if is_ours else ("", "")
        try:
            yield read_file(path, source=source, licence=licence)
        except Unread as error:
            yield _refusal(path.stem, error)
        return
    for number, (place, fields) in enumerate(rows(path), start=1):
        if isinstance(fields, Unread):
            yield _refusal("", fields)
            continue
        if recipe.format == "native":
            fields = {recipe.fields.get(name, name): value for name, value in fields.items()}
        row = SHAPES[recipe.format](fields, number)
        try:
            yield problem_of(row, place)
        except Unread as error:
            yield _refusal(row.id, error)
        except ProblemError as error:
            yield _refusal(row.id, Unread("unparsable", f"{place}: {error}: correct it"))


def _refusal(problem: str, error: Unread) -> Refusal:
    return Refusal(problem=problem, stage=STAGE, reason=error.reason, detail=str(error))


def problem_of(row: Row, place: str) -> Problem:
    """A row, checked. Raises ProblemError, of which Unread names a reason."""
    if not row.id:
        raise Unread("no id", f"{place}: no id: give the row a text or number of its own as `id`")
    if not row.statement.strip():
        raise Unread("no statement", f"{place}: no statement: describe the problem in words")
    if row.kind not in ("function", "stdin"):
        raise Unread("bad kind", f"{place}: kind={row.kind!r}: choose function or stdin")
    sources = list(dict.fromkeys(source for source in row.solutions if source.strip()))
    if not sources:
        raise Unread("no solution", f"{place}: no solution: give its Python source")
    if row.kind == "stdin":
        solutions, entry = _programs(row, sources, place), ""
        tests = tests_of(row, "", place)
    else:
        solutions, entry, names_in = _functions(row, sources, place)
        tests = tests_of(msgspec.structs.replace(row, entry=entry), names_in, place)
    for name, text in ((GENERATE, row.generator), (CHECK, row.checker)):
        if text:
            try:
                entry_of(text, name)
            except ProblemError as error:
                raise Unread("unparsable", f"{place}: {name}: {error}") from error
    return Problem(
        id=row.id,
        statement=row.statement.strip(),
        solutions=tuple(solutions[:MAX_SOLUTIONS]),
        kind=row.kind,  # pyright: ignore[reportArgumentType] - one of the two, see above
        tests=few(tests),
        generator=row.generator,
        checker=row.checker,
        concept=row.concept,
        source=row.source,
        licence=row.licence,
        place=place,
        **({"entry": entry} if entry else {}),
    )


def _programs(row: Row, sources: list[str], place: str) -> list[str]:
    """Those that are Python 3. Raises Unread where none is, or one is not and all are needed."""
    good, wrong = [], ""
    for source in sources:
        try:
            parse(source)
        except ProblemError as error:
            wrong = wrong or str(error)
            continue
        good.append(source.replace("\r\n", "\n").rstrip() + "\n")
    if not good or (wrong and row.needs_all):
        raise Unread("unparsable", f"{place}: a solution: {wrong}: correct it")
    return good


def _functions(row: Row, sources: list[str], place: str) -> tuple[list[str], str, str]:
    """Solutions with the same function at the top, its name, and a text whose parameters count.

    Those that will not do are left out. Raises Unread where none will, or one does not and all are needed.
    """
    good: list[str] = []
    entry, first = row.entry, ""
    wrong: Unread | None = None
    parameters: list[str] = []
    for source in sources:
        try:
            name = entry or entry_name(row, source, place)
            if entry:
                entry_name(row, source, place)
            names = parameters or parameters_in(source, name)
            text = standing_alone(source, name, names)
        except Unread as error:
            wrong = wrong or error
            continue
        except ProblemError as error:
            wrong = wrong or Unread("unparsable", f"{place}: a solution: {error}: correct it")
            continue
        entry, first, parameters = name, first or text, names
        good.append(text)
    if wrong is not None and (row.needs_all or not good):
        raise wrong
    return good, entry, first


def _chosen(problems: list[Problem], only: list[str]) -> list[Problem]:
    """Those whose id or concept is wanted; raises ConfigError for a word that is neither."""
    known = {word for problem in problems for word in (problem.id, problem.concept) if word}
    for word in only:
        if word not in known:
            near = get_close_matches(word, sorted(known), n=3)
            cure = f"did you mean {' or '.join(near)}?" if near else "see problems.paths"
            raise ConfigError(f"problems.only: no problem and no concept is {word!r}; {cure}")
    if not only:
        return problems
    return [one for one in problems if one.id in only or one.concept in only]
