"""What became of the problems: `report.json` for programs, `report.md` and `report.html` for people, the card.

    records -> Report (numbers) -> files of words

Everything is computed from the records that are handed in; nothing is measured here. All text is escaped:
problems and language models wrote some of it. The page needs no script and no network.
"""

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import msgspec

from rollout.report.theme import THEMES, render
from synth.filters import Quarantined
from synth.pictures import Picture, pictures
from synth.problem import Problem
from synth.records import Made, Refusal
from synth.splits import Side, Splits

FORMAT = 1
# Characters of one refusal's detail on a page; report.json has all of it.
MAX_DETAIL = 240
# Refusals that a page lists, alike ones once; report.json has all of them.
MAX_REFUSALS = 400

_FOLDER = Path(__file__).parent


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: what went in, what came out, and why something ended there."""

    name: str
    num_in: int = msgspec.field(name="in")
    num_out: int = msgspec.field(name="out")
    refused: dict[str, int]
    """Number by reason, the commonest first. One task each, where tasks are refused one by one."""
    seconds: float
    unit: str
    """What goes in: problems, environments or tasks."""


class Counts:
    """Collects the stages of a factory as they end, each timed from the end of the one before."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.stages: list[Stage] = []
        self.refusals: list[Refusal] = []
        self._clock = clock
        self._since_s = clock()

    def stage(
        self,
        name: str,
        num_in: int,
        num_out: int,
        refusals: Sequence[Refusal] = (),
        *,
        unit: str = "environments",
        seconds: float | None = None,
    ) -> None:
        """A stage has ended. Refusals of a part of it are counted under the part's name."""
        now_s = self._clock()
        reasons = Counter(
            one.reason if one.stage == name else f"{one.stage}: {one.reason}" for one in refusals
        )
        self.stages.append(
            Stage(
                name=name,
                num_in=num_in,
                num_out=num_out,
                refused=dict(reasons.most_common()),
                seconds=now_s - self._since_s if seconds is None else seconds,
                unit=unit,
            )
        )
        self.refusals += refusals
        self._since_s = now_s


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What the audit found among the tasks that are in the pools; each should be 0."""

    references_wrong: int
    """Tasks whose reference differs from a solution's answer."""
    observe_only_wins: int
    """Tasks that an agent won that only looks."""
    answer_leaks: int
    """Tasks whose answer stands in what is shown at the beginning, or in an observation."""
    duplicates: int
    """Pairs of environments that are one."""


class SideCount(msgspec.Struct, frozen=True, kw_only=True):
    """How much a side of the split holds."""

    envs: int
    tasks: int
    concepts: int


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the problems of one source."""

    source: str
    licence: str
    problems: int
    envs: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All numbers of `report.json`."""

    format: int = FORMAT
    problems: int
    envs: int
    tasks: int
    quarantined: int
    stages: list[Stage]
    audit: Audit
    certificates: dict[str, int]
    """Tasks by the calls that any agent needs at least; `none` without a certificate."""
    exact_certificates: int
    """Tasks for which that many calls also suffice."""
    tools: dict[str, int]
    """Environments by number of tools, `done` among them."""
    calls: list[int]
    """Calls of each task's shortest winning trace found."""
    origins: dict[str, int]
    """Environments by synthesizer."""
    sources: list[Origin]
    state_changing_share: float
    """Share of environments with a tool that changed hidden state."""
    splits: dict[str, SideCount]
    concepts: dict[str, int]
    """Environments by concept."""
    pass_rates: dict[str, int]
    """Tasks by share of a model's episodes that won, in tenths; empty where none was measured."""
    refusals: list[Refusal]


def build(
    *,
    problems: Sequence[Problem],
    made: Sequence[Made],
    splits: Splits,
    counts: Counts,
    audit: Audit,
    quarantined: Sequence[Quarantined] = (),
) -> Report:
    """The numbers of a result. `made` is what was exported."""
    tasks = [task for one in made for task in one.tasks]
    certified = [task.certificate for task in tasks if task.certificate is not None]
    certificates = Counter(certificate.calls for certificate in certified)
    told = {str(calls): count for calls, count in sorted(certificates.items())}
    if len(certified) < len(tasks):
        told["none"] = len(tasks) - len(certified)
    rates = Counter(int(task.pass_rate.rate * 10) / 10 for task in tasks if task.pass_rate)
    tools = Counter(len(one.tools) for one in made)
    changing = sum(bool(one.changes) for one in made)
    return Report(
        problems=len(problems),
        envs=len(made),
        tasks=len(tasks),
        quarantined=len(quarantined),
        stages=list(counts.stages),
        audit=audit,
        certificates=told,
        exact_certificates=sum(certificate.is_exact for certificate in certified),
        tools={str(number): count for number, count in sorted(tools.items())},
        calls=[task.num_calls for task in tasks],
        origins=_counted(one.draft.origin for one in made),
        sources=_sources(problems, made),
        state_changing_share=changing / len(made) if made else 0.0,
        splits=_sides(made, splits),
        concepts=_counted(one.draft.concept or "not stated" for one in made),
        pass_rates={f"{rate:.1f}": count for rate, count in sorted(rates.items())},
        refusals=list(counts.refusals),
    )


def render_report(report: Report, *, name: str) -> dict[str, bytes]:
    """The files `report.json`, `report.md` and `report.html` by name. Blocks for some seconds."""
    shown = pictures(report)
    images = {
        picture.name: {theme.name: render(picture.draw, theme) for theme in THEMES}
        for picture in shown
    }
    json = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    return {
        "report.json": json,
        "report.md": _words("report.md.j2", report, name, {}, shown),
        "report.html": _words("report.html.j2", report, name, images, shown),
    }


def render_card(report: Report, *, name: str, content: str = "", model: str = "") -> bytes:
    """`README.md`: the card of the result. `model` measured pass rates, if any did."""
    template = _environment(escapes=False).get_template("card.md.j2")
    text = template.render(report=report, name=name, content=content, model=model, sides=list(Side))
    return text.encode()


def _words(
    template: str,
    report: Report,
    name: str,
    images: Mapping[str, Mapping[str, bytes]],
    shown: Sequence[Picture],
) -> bytes:
    page = _environment(escapes=template.endswith(".html.j2")).get_template(template)
    told = alike(report.refusals)
    text = page.render(
        name=name,
        report=report,
        images=images,
        pictures=shown,
        reasons=reasons(report.refusals),
        refusals=told[:MAX_REFUSALS],
        num_left_out=max(0, len(told) - MAX_REFUSALS),
        max_detail=MAX_DETAIL,
        longest=max(report.calls, default=0),
        middle=sorted(report.calls)[len(report.calls) // 2] if report.calls else 0,
    )
    return text.encode()


def reasons(refusals: Iterable[Refusal]) -> list[tuple[str, str, int]]:
    """Stage, reason and number, the commonest first."""
    counted = Counter((one.stage, one.reason) for one in refusals)
    return [(stage, reason, count) for (stage, reason), count in counted.most_common()]


def alike(refusals: Iterable[Refusal]) -> list[tuple[Refusal, int]]:
    """The first refusal of each problem and environment for each reason, and how many there were."""
    found: dict[tuple[str, ...], list[Refusal]] = {}
    for one in refusals:
        found.setdefault((one.stage, one.problem, one.env, one.reason), []).append(one)
    return [(same[0], len(same)) for same in found.values()]


def _sources(problems: Sequence[Problem], made: Sequence[Made]) -> list[Origin]:
    envs = Counter(one.draft.problem for one in made)
    found: dict[tuple[str, str], list[int]] = {}
    known = set()
    for problem in problems:
        known.add(problem.id)
        # Of a set whose rows name a page each, the set.
        source = problem.source.split(" ")[0] or "not stated"
        counts = found.setdefault((source, problem.licence or "not stated"), [0, 0])
        counts[0] += 1
        counts[1] += envs[problem.id]
    # Environments that were made before, whose problems were not read.
    others = sum(count for problem, count in envs.items() if problem not in known)
    if others:
        found.setdefault(("not stated", "not stated"), [0, 0])[1] += others
    return [
        Origin(source=source, licence=licence, problems=counts[0], envs=counts[1])
        for (source, licence), counts in sorted(found.items())
    ]


def _sides(made: Sequence[Made], splits: Splits) -> dict[str, SideCount]:
    sides = {}
    for side in Side:
        envs = set(splits.of(side))
        of_side = [one for one in made if one.draft.env in envs]
        sides[side.value] = SideCount(
            envs=len(of_side),
            tasks=sum(len(one.tasks) for one in of_side),
            concepts=len({one.draft.concept or one.draft.problem for one in of_side}),
        )
    return sides


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table: one line, nothing of it read as markup."""
    text = " ".join(str(value).split())
    for mark in "\\`*_{}[]<>#|!":
        text = text.replace(mark, f"\\{mark}")
    return text


def _environment(*, escapes: bool) -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=escapes,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["cell"] = _cell
    found.filters["percent"] = lambda value: f"{value:.0%}".replace("%", " %")
    found.filters["data_uri"] = lambda png: (
        f"data:image/png;base64,{base64.b64encode(png).decode()}"
    )
    return found
