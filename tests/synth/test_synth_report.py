"""`synth.report`: the numbers add up, the pages say them, and no text of a problem is markup."""

import json
import re
from html.parser import HTMLParser

import msgspec
import pytest

from configs.synth import SplitRecipe
from synth.filters import Quarantined
from synth.pictures import pictures
from synth.problem import Problem
from synth.records import PassRate, Refusal
from synth.report import Audit, Counts, Report, alike, build, render_card, render_report
from synth.splits import split
from tests.synth.made import draw, make

CLEAN = Audit(references_wrong=0, observe_only_wins=0, answer_leaks=0, duplicates=0)
EVIL = "<script>alert(1)</script> | `x`\n# *head*"


def problem(name: str, source: str = "", licence: str = "") -> Problem:
    solution = "def solve(n):\n    return n\n"
    return Problem(id=name, statement="Say.", solutions=(solution,), source=source, licence=licence)


@pytest.fixture(scope="module")
def report() -> Report:
    made = [
        make("total", "sum(numbers)", concept="sums"),
        make("total_twice", "2 * sum(numbers)", concept="sums", problem="doubled"),
        make("largest", "max(numbers)", concept="order", configs=[draw(1), draw(2, 30)]),
    ]
    made[0] = msgspec.structs.replace(made[0], changes=("get",))
    tasks = made[2].tasks
    rated = msgspec.structs.replace(tasks[0], pass_rate=PassRate(model="m", won=1, samples=4))
    bare = msgspec.structs.replace(tasks[1], certificate=None)
    made[2] = msgspec.structs.replace(made[2], tasks=(rated, bare))
    counts = Counts(iter([0.0, 0.25, 12.5]).__next__)
    counts.stage(
        "read",
        4,
        3,
        [
            Refusal(problem="lost", stage="read", reason="no solution", detail=EVIL),
            Refusal(problem="lost", stage="read", reason="no solution", detail="rows.jsonl:3"),
        ],
        unit="problems",
    )
    counts.stage(
        "make",
        3,
        3,
        [
            Refusal(problem="total", env=EVIL, stage="verify", reason="timeout", detail="x" * 999),
            Refusal(problem="total", stage="make", reason="odd"),
        ],
    )
    return build(
        problems=[
            problem("total", source="millrace", licence="Apache-2.0"),
            problem("doubled", source="apps https://example.org/2"),
            problem("lost", source="apps https://example.org/3"),
            problem("nowhere"),
        ],
        made=made,
        splits=split(made, SplitRecipe(validation=0.3, test=0.0)),
        counts=counts,
        audit=CLEAN,
        quarantined=[Quarantined(env="total", problem="total", task=bare, reason="never won")],
    )


@pytest.fixture(scope="module")
def files(report: Report) -> dict[str, bytes]:
    return render_report(report, name=EVIL)


def test_numbers_add_up(files: dict[str, bytes]) -> None:
    told = json.loads(files["report.json"])
    assert (told["problems"], told["envs"], told["tasks"], told["quarantined"]) == (4, 3, 10, 1)
    assert told["stages"][0] == {
        "name": "read",
        "in": 4,
        "out": 3,
        "refused": {"no solution": 2},
        "seconds": 0.25,
        "unit": "problems",
    }
    assert told["stages"][1]["refused"] == {"verify: timeout": 1, "odd": 1}
    assert told["stages"][1]["seconds"] == 12.25
    assert told["audit"] == {
        "references_wrong": 0,
        "observe_only_wins": 0,
        "answer_leaks": 0,
        "duplicates": 0,
    }
    assert told["certificates"] == {"13": 9, "none": 1}
    assert sum(told["certificates"].values()) == sum(map(bool, told["calls"])) == told["tasks"]
    assert told["tools"] == {"4": 3} and told["origins"] == {"extract": 3}
    assert told["state_changing_share"] == pytest.approx(1 / 3)
    assert told["pass_rates"] == {"0.2": 1}
    assert sum(side["envs"] for side in told["splits"].values()) == 3
    assert sum(side["tasks"] for side in told["splits"].values()) == 10
    assert told["sources"] == [
        {"source": "apps", "licence": "not stated", "problems": 2, "envs": 1},
        {"source": "millrace", "licence": "Apache-2.0", "problems": 1, "envs": 1},
        {"source": "not stated", "licence": "not stated", "problems": 1, "envs": 1},
    ]
    assert told["refusals"][2]["detail"] == "x" * 999


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attrs if key in ("src", "srcset", "href")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone_and_escapes(report: Report, files: dict[str, bytes]) -> None:
    page = Page(files["report.html"].decode())
    assert "script" not in page.tags
    assert page.words.count("<script>alert(1)</script>") >= 3  # shown as text
    assert all(source.startswith("data:") for source in page.sources)
    assert page.tags.count("img") == len(pictures(report)) == 6
    for number in ("12.2", "no solution", "timeout"):
        assert number in page.words
    assert "x" * 300 not in page.words


def test_the_markdown_keeps_its_tables(report: Report, files: dict[str, bytes]) -> None:
    for text in (
        files["report.md"].decode(),
        render_card(report, name=EVIL, model=EVIL).decode(),
    ):
        assert "<script>" not in text
        heads = [line for line in text.splitlines() if line.startswith("# ")]
        assert len(heads) == 1
        columns = 0
        for line in text.splitlines():
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert not (columns and cells) or columns == cells, line
            columns = cells


def test_the_card_says_what_was_not_verified(report: Report) -> None:
    card = render_card(report, name="basics", model="small").decode()
    assert "| train | " in card and "| millrace | Apache-2.0 | 1 | 1 |" in card
    assert "Pass rates are those of small" in card
    unmeasured = msgspec.structs.replace(report, pass_rates={})
    assert "no model played it" in render_card(unmeasured, name="basics").decode()


def test_a_factory_that_made_nothing_has_a_report() -> None:
    nothing = build(
        problems=[],
        made=[],
        splits=split([], SplitRecipe()),
        counts=Counts(),
        audit=CLEAN,
    )
    files = render_report(nothing, name="nothing")
    assert b"Nothing was." in files["report.html"]
    assert b"Nothing was." in files["report.md"]
    assert not pictures(nothing)
    render_card(nothing, name="nothing")


def test_alike_refusals_are_told_once_with_their_number() -> None:
    one = Refusal(problem="p", env="e", stage="verify", reason="shortcut", detail="first")
    other = msgspec.structs.replace(one, detail="second")
    third = msgspec.structs.replace(one, reason="guessable")
    assert alike([one, third, other]) == [(one, 2), (third, 1)]
